"""What rows give their chat template beside the messages, as pairs and examples carry it."""

import json

import pyarrow.parquet as pq
import pytest

from sdpo.config import ColumnsConfig, SourceConfig, SupervisedConfig
from sdpo.data.formats import Candidate, PairNormaliser
from sdpo.data.keys import pair_id
from sdpo.data.pairs_file import BatchWriter, iter_row_groups
from sdpo.data.schema import PAIRS_SCHEMA
from sdpo.data.supervised import prepare_supervised

SIDES = {"prompt": "Q?", "chosen": "yes", "rejected": "no"}


def made(row, **variables):
    normaliser = PairNormaliser(format="chat", columns=ColumnsConfig(), variables=variables)
    [candidate] = normaliser.convert({**SIDES, **row})
    return candidate, normaliser


def variables(row, **of_source):
    candidate, _ = made(row, **of_source)
    assert isinstance(candidate, Candidate), candidate
    return json.loads(candidate.template_inputs or "{}").get("variables")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"chat_template_kwargs": '{"enable_thinking": false}'}, {"enable_thinking": False}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"enable_thinking": "True"}, {"enable_thinking": True}),
        ({"custom_instructions": "Be brief."}, {"custom_instructions": "Be brief."}),
        (
            {"chat_template_kwargs": {"n": 3}, "enable_thinking": True},
            {"enable_thinking": True, "n": 3},
        ),
        ({"chat_template_kwargs": {"enable_thinking": None, "tone": "dry"}}, {"tone": "dry"}),
        ({"chat_template_kwargs": "{}", "custom_instructions": ""}, None),
        ({"chat_template_kwargs": None, "enable_thinking": None}, None),
    ],
)
def test_a_row_gives_variables_as_an_object_as_text_or_by_name(row, expected):
    assert variables(row) == expected


def test_the_rows_variables_win_over_those_of_its_source():
    row = {"chat_template_kwargs": {"enable_thinking": True}}
    expected = {"enable_thinking": True, "tone": "dry"}
    assert variables(row, enable_thinking=False, tone="dry") == expected


def test_columns_of_variables_are_used_ones():
    _, normaliser = made({"enable_thinking": True, "chat_template_kwargs": {}, "id": 3})
    assert normaliser.unused_columns() == ("id",)


@pytest.mark.parametrize(
    ("row", "detail"),
    [
        ({"chat_template_kwargs": "enable"}, "no JSON object"),
        ({"chat_template_kwargs": [1]}, "no JSON object"),
        ({"chat_template_kwargs": {"tokenize": True}}, "`tokenize` is no variable"),
        ({"chat_template_kwargs": {"messages": []}}, "`messages` is no variable"),
        ({"chat_template_kwargs": {"bos_token": "x"}}, "special tokens are the tokenizer's"),
        ({"chat_template_kwargs": {"x": float("inf")}}, "a finite number"),
        ({"chat_template_kwargs": {"x": "\ud800"}}, "a value of JSON"),
        ({"enable_thinking": "maybe"}, "true or false"),
        ({"enable_thinking": 3}, "true or false"),
        ({"custom_instructions": 3}, "it is a text"),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
            "are not the same",
        ),
    ],
)
def test_variables_that_cannot_be_given_make_the_row_listed(row, detail):
    rejection, _ = made(row)
    assert rejection.reason == "template_variables"
    assert detail in rejection.detail


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "eos_token"])
def test_a_recipe_cannot_set_what_the_template_is_given_anyway(name):
    with pytest.raises(ValueError, match=f"`{name}` is no variable"):
        SourceConfig(chat_template_kwargs={name: "x"})


def test_variables_are_of_the_pair_and_not_of_its_prompt(write, prepare):
    rows = [
        SIDES,
        {**SIDES, "enable_thinking": True},
        {**SIDES, "enable_thinking": False},
        {**SIDES, "chat_template_kwargs": {"enable_thinking": False}},
    ]
    result = prepare(write(rows))
    assert result.reasons() == [("data", 4, "duplicate")]
    plain, on, off = result.pairs
    assert plain.prompt_key == on.prompt_key == off.prompt_key
    assert len({plain.pair_id, on.pair_id, off.pair_id}) == 3
    assert plain.template_inputs == ""
    assert plain.pair_id == pair_id(plain.prompt, chosen=plain.chosen, rejected=plain.rejected)
    assert on.pair_id == pair_id(
        on.prompt, chosen=on.chosen, rejected=on.rejected, template_inputs=on.template_inputs
    )
    assert prepare(write(rows[1:2])).result.digest != prepare(write(rows[2:3])).result.digest


def test_variables_of_a_source_are_in_its_pairs_as_if_the_rows_had_them(write, prepare):
    path = write([SIDES])
    by_source = prepare({"path": path, "chat_template_kwargs": {"enable_thinking": False}})
    by_row = prepare(write([{**SIDES, "enable_thinking": False}]))
    assert by_source.result.digest == by_row.result.digest
    assert by_source.pairs == by_row.pairs


def test_supervised_examples_carry_variables(write, tmp_path):
    rows = [
        {"prompt": "Q?", "completion": "yes"},
        {"prompt": "Q?", "completion": "yes", "enable_thinking": True},
    ]
    config = SupervisedConfig(
        examples="source", path=write(rows), chat_template_kwargs={"tone": "dry"}
    )
    table = pq.read_table(prepare_supervised(config, default_format="chat", out=tmp_path).path)
    assert table["template_inputs"].to_pylist() == [
        '{"variables":{"tone":"dry"}}',
        '{"variables":{"tone":"dry","enable_thinking":true}}',
    ]


def test_rows_of_files_that_have_no_such_column_yet_are_taken_over(write, prepare, tmp_path):
    new = prepare(write([SIDES])).result.path
    old = tmp_path / "old.parquet"
    pq.write_table(pq.read_table(new).drop_columns(["template_inputs"]), old)
    with BatchWriter(tmp_path / "both.parquet", PAIRS_SCHEMA) as writer:
        for path in (old, new):
            for table in iter_row_groups(path):
                writer.add_table(table)
    both = pq.read_table(tmp_path / "both.parquet")
    assert both["template_inputs"].to_pylist() == [None, None]
    assert both["pair_id"][0] == both["pair_id"][1]


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Say how it "is".',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def tools(row, format="chat"):
    [candidate] = PairNormaliser(format=format, columns=ColumnsConfig()).convert({**SIDES, **row})
    assert isinstance(candidate, Candidate), candidate
    return json.loads(candidate.template_inputs or "{}").get("tools")


@pytest.mark.parametrize(
    "value", [[WEATHER], json.dumps([WEATHER]), [json.dumps(WEATHER)], [{**WEATHER, "x": None}]]
)
def test_tools_are_a_list_of_schemas_or_its_text(value):
    assert tools({"tools": value}) == [WEATHER]
    row = {
        "input": {"messages": [{"role": "user", "content": "Q?"}], "tools": value},
        "preferred_output": [{"role": "assistant", "content": "yes"}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    [candidate] = PairNormaliser(format="chat", columns=ColumnsConfig()).convert(row)
    assert json.loads(candidate.template_inputs) == {"tools": [WEATHER]}


@pytest.mark.parametrize("value", ["[]", [], None, "", "null"])
def test_no_tools_are_none(value):
    assert tools({"tools": value}) is None


def test_the_order_of_names_in_a_tool_is_kept_as_it_is_printed():
    tool = {"name": "z", "description": "d", "a": None, "parameters": {"z": 1, "a": 2}}
    assert json.dumps(tools({"tools": json.dumps([tool])})) == json.dumps([tool])


@pytest.mark.parametrize(
    "value", ["weather", [3], ["weather"], [{}], {"name": "x"}, [{"function": {"name": ""}}]]
)
def test_tools_that_are_no_schemas_make_the_row_listed(value):
    rejection, _ = made({"tools": value})
    assert rejection.reason == "not_text"
    assert "`tools` is no list of JSON schemas" in rejection.detail


def test_a_source_of_text_has_nothing_to_print_tools_with():
    normaliser = PairNormaliser(format="text", columns=ColumnsConfig())
    [rejection] = normaliser.convert({**SIDES, "tools": [WEATHER]})
    assert "`format: chat`" in rejection.detail


def test_tools_are_of_the_pair(write, prepare):
    rows = [SIDES, {**SIDES, "tools": [WEATHER]}, {**SIDES, "tools": json.dumps([WEATHER])}]
    result = prepare(write(rows))
    assert result.reasons() == [("data", 3, "duplicate")]
    assert len({pair.pair_id for pair in result.pairs}) == 2
    assert result.result.sources[0].unused_columns == ()
