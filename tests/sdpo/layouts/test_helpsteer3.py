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


def row(question: str, preference: object, **more: Any) -> dict[str, Any]:
    return {
        "domain": "general",
        "context": [{"role": "user", "content": question}],
        "response1": f"first to {question}",
        "response2": f"second to {question}",
        "overall_preference": preference,
    } | more


ROWS = [row("Why?", -3), row("How?", 1), row("When?", 0), row("Where?", None), row("Who?", 2.0)]


def prepared(path: Path, out: Path, *strata: str, **source: Any) -> PreparedPairs:
    source = {"path": str(path), "layout": "helpsteer3", "format": "chat"} | source
    data = DataConfig(sources=[SourceConfig.model_validate(source)])
    return prepare_pairs(data, default_format="chat", strata=["source", *strata], out=out)


def test_the_sign_of_the_preference_says_which_answer_is_chosen(
    write_jsonl: Write, tmp_path: Path
) -> None:
    found = prepared(write_jsonl(ROWS), tmp_path / "out", "domain")
    (counts,) = found.sources
    assert (counts.read, counts.kept) == (5, 3)
    assert counts.rejected == {"not_a_pair": 2}
    pairs = pq.read_table(found.path).to_pylist()
    told = [(p["prompt"][0]["content"], p["chosen"][0]["content"]) for p in pairs]
    assert told == [
        ("Why?", "first to Why?"),
        ("How?", "second to How?"),
        ("Who?", "second to Who?"),
    ]
    assert pairs[0]["rejected"][0]["content"] == "second to Why?"
    assert dict(pairs[0]["strata"]) == {"domain": "general"}


def test_why_a_row_is_no_pair_is_listed(write_jsonl: Write, tmp_path: Path) -> None:
    found = prepared(write_jsonl(ROWS), tmp_path / "out")
    lines = found.rejected_path.read_text(encoding="utf-8").splitlines()
    listed = {json.loads(line)["row"]: json.loads(line)["detail"] for line in lines}
    assert listed == {
        3: "overall_preference is 0: it favours neither answer",
        4: "overall_preference is None: it favours neither answer",
    }


def test_a_source_in_this_layout_is_told_to_name_it(write_jsonl: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="set the source's `layout` to `helpsteer3`"):
        prepared(write_jsonl(ROWS), tmp_path / "out", layout="")


def test_rows_of_another_layout_are_named_with_what_fails(
    write_jsonl: Write, tmp_path: Path
) -> None:
    path = write_jsonl([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match=r"line 1\): the layout `helpsteer3` fails .*KeyError"):
        prepared(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"layout": "helpster3"}, r"layout: `helpster3` is not known .*`helpsteer3`\?"),
        (
            {"layout": "helpsteer3", "columns": {"prompt": "p"}},
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
    code = "import sys, sdpo.config; print('sdpo.layouts.helpsteer3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
