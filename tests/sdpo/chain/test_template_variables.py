"""Variables of the chat template through a whole run."""

from pathlib import Path

import pyarrow.parquet as pq
from bench import Bench, DemoFiles
from transformers import AutoTokenizer

from sdpo.tokens.token_file import TokenFile


def test_a_run_prints_with_the_recipes_variables_and_its_models_tell_them(
    bench: Bench, demo_files: DemoFiles, tmp_path: Path
) -> None:
    own = (demo_files.model / "chat_template.jinja").read_text()
    (tmp_path / "toned.jinja").write_text("{{ tone }}\n" + own)
    template = {"chat_template": str(tmp_path / "toned.jinja")}
    changes = {"partition": {"strategy": "single"}, "steps": []}
    given = bench.run(
        changes | {"name": "toned", "model": template | {"chat_template_kwargs": {"tone": "dry"}}}
    )
    tokenizer = AutoTokenizer.from_pretrained(demo_files.model)
    path = next((bench.folder / "cache").rglob("*.arrow"))
    rows = pq.read_table(given.run.pairs).to_pylist()
    tokens = TokenFile.open(path)
    row = int(tokens.usable.argmax())
    expected = tokenizer.apply_chat_template(
        rows[row]["prompt"],
        chat_template=(tmp_path / "toned.jinja").read_text(),
        tone="dry",
        add_generation_prompt=True,
        return_dict=False,
    )
    ids = tokens.prompt_ids(row).tolist()
    assert ids[-len(expected) :] == expected
    assert '{"tone": "dry"}' in (given.run.model(1) / "README.md").read_text()
    published = AutoTokenizer.from_pretrained(given.run.model(1))
    assert (
        published.apply_chat_template(
            rows[row]["prompt"], tone="dry", add_generation_prompt=True, return_dict=False
        )
        == expected
    )
