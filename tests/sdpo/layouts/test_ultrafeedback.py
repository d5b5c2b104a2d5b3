"""A layout that its columns alone do not tell is read where the source names it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sdpo.config import DataConfig, SourceConfig
from sdpo.config.load import make_config
from sdpo.data.prepare import PreparedPairs, prepare_pairs
from sdpo.errors import ConfigError, DataError
from sdpo.layouts import layout_names, reader_of

Write = Callable[..., Path]


def row(instruction: str, **scores: float | None) -> dict[str, Any]:
    answers = [{"response": name, "overall_score": score} for name, score in scores.items()]
    return {"instruction": instruction, "completions": answers, "source": "flan"}


ROWS = [
    row("Why?", poor=2.0, best=9.5, middling=5.0, worst=1.0),
    row("How?", first=7.0, second=7.0),
    row("When?", only=4.0, unscored=None),
    row("Who?", good=3, bad=2),
]


def prepared(path: Path, out: Path, **source: Any) -> PreparedPairs:
    source = {"path": str(path), "layout": "ultrafeedback", "format": "text"} | source
    data = DataConfig(sources=[SourceConfig.model_validate(source)])
    return prepare_pairs(data, default_format="text", strata=["source", "source"], out=out)


def test_the_best_answer_is_paired_with_the_worst(write_jsonl: Write, tmp_path: Path) -> None:
    found = prepared(write_jsonl(ROWS), tmp_path / "out")
    (counts,) = found.sources
    assert (counts.read, counts.kept) == (4, 2)
    assert counts.rejected == {"not_a_pair": 1, "tie": 1}
    pairs = pq.read_table(found.path).to_pylist()
    sides = [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs]
    assert sides == [("best", "worst"), ("good", "bad")]
    assert [(p["chosen_score"], p["rejected_score"]) for p in pairs] == [(9.5, 1.0), (3.0, 2.0)]


def test_why_a_row_is_no_pair_is_listed(write_jsonl: Write, tmp_path: Path) -> None:
    found = prepared(write_jsonl(ROWS), tmp_path / "out")
    lines = found.rejected_path.read_text(encoding="utf-8").splitlines()
    listed = {json.loads(line)["row"]: json.loads(line)["detail"] for line in lines}
    assert listed[3] == "fewer than two of its answers have an overall score"


def test_a_source_in_this_layout_gives_the_same_pairs_without_its_name(
    write_jsonl: Write, tmp_path: Path
) -> None:
    path = write_jsonl(ROWS)
    named, found = (
        prepared(path, tmp_path / (n or "auto"), layout=n) for n in ("ultrafeedback", "")
    )
    assert found.digest == named.digest
    assert found.sources[0].rejected == {"no_score": 1, "tie": 1}


def test_rows_of_another_layout_are_named_with_what_fails(
    write_jsonl: Write, tmp_path: Path
) -> None:
    path = write_jsonl([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=r"line 1\): the layout `ultrafeedback` fails .*KeyError"):
        prepared(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"layout": "ultrafedback"}, r"layout: `ultrafedback` is not known .*`ultrafeedback`\?"),
        (
            {"layout": "ultrafeedback", "columns": {"prompt": "p"}},
            r"data\.sources\.0 has both `layout` and `columns`",
        ),
    ],
)
def test_a_layout_that_cannot_be_followed_is_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({"data": {"sources": [source]}})


@pytest.mark.parametrize("name", layout_names())
def test_every_layout_of_the_project_can_be_read_by_name(name: str) -> None:
    assert callable(reader_of(name))


def test_layouts_are_known_without_executing_their_readers() -> None:
    code = "import sys, sdpo.config; print('sdpo.layouts.ultrafeedback' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
