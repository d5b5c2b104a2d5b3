"""A server that is not ours, ``transformers serve``: it takes text alone and tells no log-probs."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from bench import DemoFiles

from sdpo.generation.completions_client import CompletionsClient, Draw, Form
from sdpo.generation.served_model import check_served
from sdpo.generation.server import served
from sdpo.system.permissions import SERVE

COMMAND = [
    *(sys.executable, "-m", "transformers.cli.transformers", "serve", "{model}"),
    *("--port", "{port}", "--host", "127.0.0.1", "--device", "cpu"),
]


@pytest.mark.slow
def test_transformers_serve_answers_by_seed_and_is_gone_afterwards(
    demo_files: DemoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="`transformers serve` needs it")
    from transformers import AutoTokenizer

    monkeypatch.setenv(SERVE, shlex.join(COMMAND))
    tokenizer = AutoTokenizer.from_pretrained(demo_files.model)
    turns = [{"role": "user", "content": "Can you help me?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    draw = {"tokens": 12, "temperature": 0.8, "top_p": 0.95}
    with (
        served(
            COMMAND,
            folder=demo_files.model,
            ends=[2],
            vocabulary=len(tokenizer),
            scratch=tmp_path,
            ready_s=150,
        ) as server,
        CompletionsClient(
            server.url, model=server.model, tokenizer=tokenizer, why_gone=server.why_gone
        ) as client,
    ):
        assert server.name == "transformers.cli.transformers"
        client.settle_form(ids)
        assert client.form == Form(as_ids=False)
        assert check_served(client, [], tokenizer) is None
        texts = [client.complete(ids, Draw(seed=seed, **draw)).text for seed in (1, 2, 1)]
        family = server.kept.processes()
        assert family
    assert texts[0] == texts[2] != texts[1]
    assert not any(process.is_running() for process in family)
    neutral = json.loads((tmp_path / "model" / "generation_config.json").read_text("utf-8"))
    assert neutral["top_k"] == len(tokenizer)
