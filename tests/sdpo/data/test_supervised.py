"""Supervised examples."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sdpo.config import SupervisedConfig
from sdpo.data.keys import prompt_key
from sdpo.data.schema import Message
from sdpo.data.supervised import SUPERVISED_SCHEMA, prepare_supervised
from sdpo.errors import ConfigError, DataError


@pytest.fixture
def supervised(write, tmp_path: Path):
    def supervised(rows, format="chat", **columns):
        config = SupervisedConfig(examples="source", path=write(rows), columns=columns)
        result = prepare_supervised(config, default_format=format, out=tmp_path / "run")
        return result, pq.read_table(result.path)

    return supervised


def turns(*pairs):
    return [{"role": role, "content": content, "rest": None} for role, content in pairs]


USER, ASSISTANT = ("user", "Q?"), ("assistant", "yes")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"messages": turns(USER, ASSISTANT)}, [USER]),
        (
            {"messages": turns(("system", "Be."), USER, ("assistant", "a"), USER, ASSISTANT)},
            [("system", "Be."), USER, ("assistant", "a"), USER],
        ),
        (
            {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "yes"}]},
            [USER],
        ),
        ({"prompt": "Q?", "completion": "yes"}, [USER]),
        ({"prompt": turns(USER), "completion": turns(ASSISTANT)}, [USER]),
        ({"prompt": "Q?", "response": "yes"}, [USER]),
        ({"instruction": "Q", "input": "?", "output": "yes"}, [("user", "Q\n?")]),
        (
            {"instruction": "Q?", "output": "yes", "system": "Be.", "history": [["a", "b"]]},
            [("system", "Be."), ("user", "a"), ("assistant", "b"), USER],
        ),
    ],
)
def test_known_formats_become_prompt_and_completion(row, prompt, supervised):
    result, table = supervised([row])
    assert table.schema.equals(SUPERVISED_SCHEMA)
    (example,) = table.to_pylist()
    assert example["prompt"] == turns(*prompt)
    assert example["completion"] == turns(ASSISTANT)
    assert example["prompt_key"] == prompt_key([Message(*turn) for turn in prompt])
    assert (example["row"], example["format"], result.kept) == (1, "chat", 1)


@pytest.mark.parametrize(
    ("row", "columns", "prompt"),
    [
        ({"talk": turns(USER, ASSISTANT)}, {"messages": "talk"}, [USER]),
        ({"q": "Q?", "a": {"text": "yes"}}, {"prompt": "q", "completion": "a.text"}, [USER]),
        (
            {"prompt": "Q?", "completion": "no", "better": "yes", "role": "Be."},
            {"prompt": "prompt", "completion": "better", "system": "role"},
            [("system", "Be."), USER],
        ),
        (
            {"prompt": "Q?", "completion": "yes", "s": "Be."},
            {"system": "s"},
            [("system", "Be."), USER],
        ),
    ],
)
def test_columns_are_those_that_are_named(row, columns, prompt, supervised):
    _, table = supervised([row], **columns)
    (example,) = table.to_pylist()
    assert example["prompt"] == turns(*prompt)
    assert example["completion"] == turns(ASSISTANT)


def test_a_named_column_that_is_not_there_is_refused(supervised):
    message = r"supervised\.columns\.messages is `talk`, but the columns are: prompt, completion"
    with pytest.raises(DataError, match=message):
        supervised([{"prompt": "Q?", "completion": "yes"}], messages="talk")


def test_text_sources_stay_text(supervised):
    row = {"instruction": " Q", "input": "in\r\n", "output": "yes\u2028"}
    _, table = supervised([row], "text")
    assert table["prompt"].to_pylist() == [turns(("text", " Q\nin\r\n"))]
    assert table["completion"].to_pylist() == [turns(("text", "yes\u2028"))]
    with pytest.raises(DataError, match=r"line 1: conversations without a chat template"):
        supervised([{"messages": turns(USER, ASSISTANT)}], "text")


def test_rows_that_are_no_example_are_counted_and_listed(supervised):
    rows = [
        {"prompt": "Q?", "completion": "yes"},
        {"prompt": " ", "completion": "yes"},
        {"prompt": "Q?", "completion": ""},
        {"prompt": "Q? ", "completion": "yes\n"},
        {"prompt": "Q?", "completion": 3},
        {"prompt": "Q?", "completion": "other"},
    ]
    result, table = supervised(rows)
    assert result.rejected == {
        "duplicate": 1,
        "empty_completion": 1,
        "empty_prompt": 1,
        "not_text": 1,
    }
    assert table["row"].to_pylist() == [1, 6]
    listed = result.rejected_path.read_text().splitlines()
    assert len(listed) == 4
    assert '"row": 4, "reason": "duplicate", "detail": "the same example as line 1"' in listed[2]


def test_a_dialogue_that_ends_with_the_user_teaches_nothing(supervised):
    rows = [{"messages": turns(USER, ASSISTANT)}, {"messages": turns(USER, ASSISTANT, USER)}]
    result, _ = supervised(rows)
    assert result.rejected == {"empty_completion": 1}


def test_the_digest_is_of_content_alone(supervised):
    rows = [{"prompt": f"{i}", "completion": "yes"} for i in range(5)]
    digest = supervised(rows)[0].digest
    assert supervised([rows[0], *rows])[0].digest == digest
    assert supervised([{"prompt": "0 ", "completion": "yes"}, *rows[1:]])[0].digest != digest


def test_what_is_no_supervised_data_is_refused_and_leaves_nothing(supervised, tmp_path):
    for row, message in (
        ({"prompt": "Q", "completion": "c", "label": False}, "unpaired preference data"),
        ({"a": 1}, "no supervised columns recognised. Columns seen: a"),
        ({"prompt": "Q", "completion": ""}, "no supervised example is left: of 1 rows"),
    ):
        with pytest.raises(DataError, match=message):
            supervised([row])
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(ConfigError, match=r"supervised\.path is empty"):
        prepare_supervised(SupervisedConfig(), default_format="chat", out=tmp_path / "run")
