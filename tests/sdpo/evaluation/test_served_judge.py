"""A judge behind servers that others wrote, with real models on loopback.

`transformers serve` answers; LiteLLM's gateway before it has a filter of contents, which refuses.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from bench import Bench, DemoFiles
from forked_stages import forked_stages
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sdpo.config.judging import JudgeConfig
from sdpo.data.schema import Message
from sdpo.errors import UserError
from sdpo.evaluation.endpoint import Endpoint
from sdpo.evaluation.judging import Comparison, Verdict, make_judge
from sdpo.history.evaluate import evaluate_run
from sdpo.history.verify import verify_run
from sdpo.inputs.judges import locate_judge
from sdpo.report.win_rates import load_win_rates
from sdpo.store.run_folder import RunFolder
from sdpo.system.permissions import JUDGE_ENDPOINTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

START_S = 240
"""A machine with much else to do may take so long to import what serves."""
NEEDED = ("fastapi", "uvicorn", "openai")
GATEWAY = Path(__file__).parents[3] / "build" / "gateway" / "bin"
GATEWAY_KEY = "sk-of-a-gateway-on-loopback-that-nobody-else-reaches"
FILTERED = """
model_list:
  - model_name: judge
    litellm_params: {{model: openai/{model}, api_base: {upstream}, api_key: none}}
guardrails:
  - guardrail_name: filter
    litellm_params:
      guardrail: litellm_content_filter
      mode: pre_call
      default_on: true
      blocked_words: [{{keyword: forbidden, action: BLOCK}}]
general_settings: {{master_key: {key}}}
"""


@dataclass(frozen=True)
class Served:
    """A server that runs, the folder of a model that answers `A`, and of one that answers `I`."""

    url: str
    first: Path
    vain: Path


def write_model_that_says(word: str, folder: Path, like: Path) -> Path:
    """A Llama whose weights say a word of one token after anything, and then the end.

    Its one block adds nothing. The embedding tells the word from all other tokens, and the head
    reads that off.
    """
    tokenizer = AutoTokenizer.from_pretrained(like)
    (token,) = tokenizer.encode(word, add_special_tokens=False)
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8192, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding[:, 0], embedding[token, 0], embedding[token, 1] = 1, 0, 1
        head[token, 0], head[end, 1] = 10, 10
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def is_up(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=2) as reply:
        return bool(reply.status == 200)
    return False


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(command: list[str], url: str, log: Path, **variables: str) -> Iterator[None]:
    """A server that is up, until the block's end."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        )  # fmt: skip
    try:
        until = time.monotonic() + START_S
        while not is_up(url):
            assert process.poll() is None, log.read_text("utf-8")[-2000:]
            assert time.monotonic() < until, "the server does not come up"
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, demo_files: DemoFiles) -> Iterator[Served]:
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        needs = ", ".join(missing)
        pytest.skip(f"`transformers serve` needs {needs}: `make test-real` installs it")
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with running(command, f"http://127.0.0.1:{port}/health", folder / "log"):
        first, vain = (
            write_model_that_says(word, folder / word, demo_files.model) for word in "AI"
        )
        yield Served(f"http://127.0.0.1:{port}/v1", first, vain)


@pytest.fixture(scope="module")
def filtered(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway before the server that takes no text with the word `forbidden`."""
    program = shutil.which("litellm", path=f"{GATEWAY}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("LiteLLM's gateway is not installed: `make test-real` installs it")
    folder, port = tmp_path_factory.mktemp("gateway"), free_port()
    settings = FILTERED.format(model=served.first, upstream=served.url, key=GATEWAY_KEY)
    (folder / "config.yaml").write_text(settings, encoding="utf-8")
    command = [program, "--config", str(folder / "config.yaml")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # prices, which are not asked of the network
    with running(command, f"{url}/health/liveliness", folder / "log", **local):
        yield f"{url}/v1"


Ask = Callable[..., Endpoint]


@pytest.fixture
def ask(served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """A judge at the server, with settings."""
    monkeypatch.setenv(JUDGE_ENDPOINTS, served.url)

    def made(folder: Path, **settings: Any) -> Endpoint:
        values = {"endpoint": served.url, "model": str(folder), "max_tokens_total": 10**6}
        config = JudgeConfig.model_validate(values | {"retries": 0} | settings)
        located = locate_judge(config, where="here", cache=tmp_path)
        judge = make_judge(
            located, device="cpu", kept=tmp_path / located.key, label="run", warn=pytest.fail
        )
        assert isinstance(judge, Endpoint)
        return judge

    return made


def pairs(count: int) -> list[Comparison]:
    prompt = (Message("user", "Why is the sky blue?"),)
    return [Comparison(f"{n:032x}", prompt, f"Because {n}.", f"Light, {n}.") for n in range(count)]


def kept(judge: Endpoint) -> list[dict[str, Any]]:
    return [json.loads(line) for line in judge.file.path.read_text("utf-8").splitlines()]


def test_verdicts_of_a_model_that_is_served_are_read_and_its_own_counts_are_kept(
    ask: Ask, served: Served
) -> None:
    judge = ask(served.first)
    assert judge.verdicts(pairs(2)) == [Verdict(1, 0)] * 2, "the first in both orders"
    lines = kept(judge)
    assert [line["text"] for line in lines] == ["A"] * 4
    tokenizer = AutoTokenizer.from_pretrained(served.first)
    turns = [{"role": "user", "content": judge._requests(pairs(1)[0])[0].content}]
    read = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    # What it writes is `A` and the end.
    assert lines[0]["tokens"] == len(read) + 2
    assert judge.file.spent("run") == sum(line["tokens"] for line in lines)
    assert judge.verdicts(pairs(2)) == [Verdict(1, 0)] * 2
    assert len(kept(judge)) == 4, "nothing is asked again"


def test_a_model_that_answers_nonsense_is_refused_with_what_it_said(
    ask: Ask, served: Served
) -> None:
    judge = ask(served.vain)
    with pytest.raises(UserError, match=r"no verdict on 1 of 1 .* answered, for example, 'I' "):
        judge.verdicts(pairs(1))
    assert len(kept(judge)) == 4, "each order was asked for twice"
    assert {line["verdict"] for line in kept(judge)} == {None}


def test_a_ceiling_is_never_passed_by_what_the_server_counts(ask: Ask, served: Served) -> None:
    counted = kept_tokens(ask(served.first))
    ceiling = 6 * counted
    judge = ask(served.first, max_tokens_total=ceiling, parallel=2, answer_tokens=8)
    with pytest.raises(UserError, match=rf"ceiling is reached: \d+ of max_tokens_total {ceiling}"):
        judge.verdicts(pairs(4))
    spent = judge.file.spent("run")
    assert 0 < spent <= ceiling
    raised = ask(served.first, answer_tokens=8)
    assert raised.verdicts(pairs(4)) == [Verdict(1, 0)] * 4
    assert len(kept(raised)) == 8


def kept_tokens(judge: Endpoint) -> int:
    judge.verdicts(pairs(1))
    return int(kept(judge)[0]["tokens"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout_s": 0.001}, r"asked 1 times: it gave no answer within 0\.001 s"),
        ({"model": "nobody/knows"}, r"asked 1 times: it answers 500"),
        ({"endpoint": ""}, r"404, it does not know the model .* or the address"),
    ],
)
def test_a_server_that_does_not_answer_is_told_in_one_message(
    ask: Ask,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    message: str,
) -> None:
    if "endpoint" in settings:  # without its /v1
        settings = {"endpoint": served.url.removesuffix("/v1")}
        monkeypatch.setenv(JUDGE_ENDPOINTS, settings["endpoint"])
    judge = ask(served.first, **settings)
    with pytest.raises(UserError, match=message):
        judge.verdicts(pairs(1))


@pytest.fixture
def ask_filtered(
    ask: Ask, filtered: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Endpoint]:
    """The judge behind the gateway."""
    monkeypatch.setenv(JUDGE_ENDPOINTS, filtered)
    monkeypatch.setenv("SDPO_JUDGE_KEY", GATEWAY_KEY)
    return lambda: ask(Path("judge"), endpoint=filtered)


def test_a_text_that_a_gateway_s_filter_refuses_has_no_verdict_and_ends_nothing(
    ask_filtered: Callable[[], Endpoint],
) -> None:
    few = [Comparison("f" * 32, pairs(1)[0].prompt, "It is forbidden.", "No."), *pairs(10)]
    judge = ask_filtered()
    assert judge.verdicts(few) == [Verdict(None, None), *([Verdict(1, 0)] * 10)]
    asked = len(kept(judge))
    assert ask_filtered().verdicts(few)[0].value is None
    assert len(kept(judge)) == asked, "what was refused is not sent again"


def test_a_gateway_that_refuses_everything_is_told_in_one_message_with_nothing_lost(
    ask_filtered: Callable[[], Endpoint],
) -> None:
    prompt = (Message("user", "Say what is forbidden."),)
    judge = ask_filtered()
    with pytest.raises(UserError, match=r"no verdict on 2 of 2 .*refused 2 .*Content blocked"):
        judge.verdicts([Comparison(each.key, prompt, each.first, each.second) for each in pairs(2)])
    assert {(line["verdict"], line["refused"]) for line in kept(judge)} == {(None, True)}
    assert GATEWAY_KEY not in judge.file.path.read_text("utf-8")


def test_a_run_is_judged_by_a_served_model_through_the_chain(
    served: Served, finished_copy: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JUDGE_ENDPOINTS, served.url)
    run = RunFolder(finished_copy.runs / "tiny")
    settings = [
        "evaluation.win_rate.prompts=4",
        "evaluation.win_rate.max_new_tokens=6",
        f"evaluation.win_rate.judge.endpoint={served.url}",
        f"evaluation.win_rate.judge.model={served.first}",
        "evaluation.win_rate.judge.max_tokens_total=100000",
    ]
    with forked_stages():
        evaluate_run(run, win_rate=True, models=["M_0", "M_1"], overrides=settings)
        again = evaluate_run(run, win_rate=True, models=["M_0", "M_1"], overrides=settings)
    assert again.executed == ()
    (won,) = load_win_rates(run)
    table = pq.read_table(won.verdicts.table)
    verdicts = [*zip(table["forward"].to_pylist(), table["backward"].to_pylist(), strict=True)]
    assert set(verdicts) - {(0.5, 0.5)} == {(1.0, 0.0)}, "equal answers tie without a request"
    # Who always takes the first wins and loses everything: a half, and the orders do not agree.
    assert won.found.rate == 0.5
    assert won.found.agreement == verdicts.count((0.5, 0.5)) / len(verdicts)
    assert "Orders agree" in run.report.read_text("utf-8")
    assert verify_run(run).faults == []
