"""Tool calls, turns of tools and reasoning in messages."""

import json

import pyarrow.parquet as pq
import pytest

from sdpo.config import ColumnsConfig, SupervisedConfig
from sdpo.data.formats import Candidate, PairNormaliser
from sdpo.data.keys import pair_id
from sdpo.data.pairs_file import BatchWriter, iter_row_groups
from sdpo.data.prompts import Rejection
from sdpo.data.schema import PAIRS_SCHEMA, Message
from sdpo.data.supervised import prepare_supervised

ARGUMENTS = {"city": "Rome", "b": None, "a": [1, {"x": "y"}]}
FUNCTION = {"name": "weather_of", "arguments": ARGUMENTS}
ID = "abcdef123"
SIDES = {"chosen": "yes", "rejected": "no"}
USER, NO = {"role": "user", "content": "Q?"}, {"role": "assistant", "content": "no"}
CALL = {"id": ID, "type": "function", "function": FUNCTION}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOOL = {"role": "tool", "name": "weather_of", "tool_call_id": ID, "content": "blue"}
YES = {"role": "assistant", "content": "yes"}


def made_of(row):
    [made] = PairNormaliser(format="chat", columns=ColumnsConfig()).convert(row)
    return made


def chosen_of(message) -> Message:
    made = made_of({"prompt": "Q?", "chosen": [message], "rejected": "no"})
    assert isinstance(made, Candidate), made
    return made.chosen[0]


def rest_of(message) -> dict[str, object]:
    return json.loads(chosen_of(message).rest or "{}")


def rejection_of(prompt, chosen=YES) -> Rejection:
    made = made_of({"prompt": prompt, "chosen": [chosen], "rejected": [NO]})
    assert isinstance(made, Rejection), made
    return made


def test_calls_and_answers_of_tools_stand_in_a_prompt_as_they_are():
    made = made_of({"prompt": [USER, CALLS, TOOL], "chosen": [YES], "rejected": [NO]})
    assert [message.role for message in made.prompt] == ["user", "assistant", "tool"]
    _, call, answer = made.prompt
    assert json.loads(call.rest) == {"tool_calls": [{**CALL, "function": _without(FUNCTION)}]}
    assert json.loads(answer.rest) == {"name": "weather_of", "tool_call_id": ID}
    assert answer.content == "blue"


def _without(function):
    """What is null in an object is not given: Parquet has every name in every object."""
    return {**function, "arguments": {k: v for k, v in ARGUMENTS.items() if v is not None}}


@pytest.mark.parametrize(
    "message",
    [
        {**CALLS, "tool_calls": json.dumps([CALL])},
        {**CALLS, "tool_calls": [json.dumps(CALL)]},
        {**CALLS, "tool_calls": [{**CALL, "function": {**FUNCTION, "arguments": None}}]},
        {**CALLS, "tool_calls": [{"id": ID, **FUNCTION, "arguments": json.dumps(ARGUMENTS)}]},
        {**CALLS, "tool_calls": None, "function_call": FUNCTION},
        {"from": "function_call", "value": json.dumps(FUNCTION)},
        {"from": "function_call", "value": json.dumps([FUNCTION])},
    ],
)
def test_calls_have_one_form_whatever_theirs_is(message):
    [call] = rest_of(message)["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather_of"
    assert call["function"] in (FUNCTION, _without(FUNCTION), {**FUNCTION, "arguments": {}})
    assert chosen_of(message).role == "assistant"


def test_the_order_of_names_in_arguments_is_kept_as_it_is_printed():
    [call] = rest_of({**CALLS, "tool_calls": json.dumps([CALL])})["tool_calls"]
    assert json.dumps(call["function"]["arguments"]) == json.dumps(ARGUMENTS)


@pytest.mark.parametrize("text", ["not json", '{"a": 1', "[1]", '"x"', '{"a": 1, "a": 2}'])
def test_arguments_that_are_no_object_stay_the_text_that_the_model_wrote(text):
    call = {**CALL, "function": {**FUNCTION, "arguments": text}}
    assert rest_of({**CALLS, "tool_calls": [call]})["tool_calls"] == [call]


@pytest.mark.parametrize("role", ["tool", "function", "observation", "ipython"])
def test_a_turn_of_a_tool_has_one_role(role):
    made = made_of(
        {"prompt": [USER, CALLS, {"role": role, "content": "4"}], "chosen": [YES], "rejected": [NO]}
    )
    assert made.prompt[2] == Message("tool", "4")


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_one_name(name):
    assert rest_of({**YES, name: " hm\n"}) == {"reasoning_content": " hm\n"}


def test_reasoning_may_stand_twice_where_it_is_the_same():
    both = {**YES, "thinking": "hm", "reasoning_content": "hm"}
    assert rest_of(both) == {"reasoning_content": "hm"}
    assert "reasoning twice" in rejection_of("Q?", {**both, "thinking": "ah"}).detail


@pytest.mark.parametrize("tag", ["think", "thinking", "reasoning"])
@pytest.mark.parametrize("thought", ["hm", "other"])
def test_reasoning_in_the_text_and_in_a_field_is_refused(tag, thought):
    """A template prints both, so that it stands there twice."""
    text = f"\n<{tag}>\nhm\n</{tag}>\n\nyes"
    both = {"role": "assistant", "content": text, "reasoning_content": thought}
    assert "reasoning twice" in rejection_of("Q?", both).detail
    assert chosen_of({**both, "reasoning_content": " "}) == Message("assistant", text)
    assert rest_of({**both, "content": f"<{tag}> is a tag."}) == {"reasoning_content": thought}


@pytest.mark.parametrize("name", ["functions", "function_calls", "tools", "documents", "context"])
def test_what_some_templates_print_of_a_message_is_refused_where_it_is_not_read(name):
    for value in ("x", ["x"], [{"name": "f"}]):
        assert f"`{name}`, which is not read" in rejection_of("Q?", {**YES, name: value}).detail
    assert chosen_of({**YES, name: None}) == Message("assistant", "yes")


@pytest.mark.parametrize("nothing", [None, "", "[]", [], "null", {}])
def test_what_is_empty_is_not_there(nothing):
    names = ("tool_calls", "function_call", "thinking", "reasoning_content")
    assert chosen_of({**YES, **dict.fromkeys(names, nothing)}) == Message("assistant", "yes")


@pytest.mark.parametrize(
    ("message", "detail"),
    [
        ({**CALLS, "tool_calls": "weather"}, "is no list of calls"),
        ({**CALLS, "tool_calls": [3]}, "is no list of calls"),
        ({**CALLS, "tool_calls": [{"function": {"arguments": {}}}]}, "is no list of calls"),
        ({**CALLS, "tool_calls": [{"name": ""}]}, "is no list of calls"),
        ({**CALLS, "function_call": FUNCTION}, "both `tool_calls` and `function_call`"),
        ({**YES, "thinking": [{"type": "text"}]}, "`thinking`, which is not text"),
        ({"from": "function_call", "value": "weather"}, "is no list of calls"),
        (
            {**CALLS, "tool_calls": [{"name": "x", "arguments": {"t": float("nan")}}]},
            "none of JSON",
        ),
    ],
)
def test_what_is_no_call_makes_the_row_listed(message, detail):
    rejection = rejection_of("Q?", message)
    assert rejection.reason == "not_text"
    assert detail in rejection.detail


@pytest.mark.parametrize("field", ["images", "audio", "refusal", "tool_plan"])
def test_contents_that_have_no_place_here_make_the_row_listed_by_name(field):
    rejection = rejection_of([{**USER, field: ["a.png"]}])
    assert f"a message of `prompt` has `{field}`, which is not read" in rejection.detail
    assert isinstance(made_of({"prompt": [{**USER, field: []}], **SIDES}), Candidate)


def nested(depth: int) -> dict[str, object]:
    value: dict[str, object] = {"x": "y"}
    for _ in range(depth):
        value = {"x": value}
    return value


@pytest.mark.parametrize("depth", [70, 400, 900])
@pytest.mark.parametrize("as_text", [True, False])
def test_values_within_values_without_end_make_the_row_listed(depth, as_text):
    deep = nested(depth)
    call = {"name": "f", "arguments": json.dumps(deep) if as_text else deep}
    tool = {"name": "f", "parameters": deep}
    rows = [
        {"prompt": "Q?", "chosen": [{**CALLS, "tool_calls": [call]}], "rejected": "no"},
        {"prompt": "Q?", "tools": json.dumps([tool]) if as_text else [tool], **SIDES},
        {"prompt": "Q?", "chat_template_kwargs": json.dumps(deep) if as_text else deep, **SIDES},
    ]
    for row in rows:
        made = made_of(row)
        # Text that is too deep for JSON's reader is text, as of a call it may be.
        assert isinstance(made, Rejection) or (as_text and depth == 900), made


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"weight": 0.0}])
def test_an_example_whose_last_turn_is_not_to_be_trained_on_is_listed(write, tmp_path, mark):
    rows = [
        {"messages": [{**USER, **mark}, {"role": "assistant", "content": "a", "weight": 1}]},
        {"messages": [USER, {**YES, **mark}]},
        {"messages": [USER, {**YES, **dict.fromkeys(mark)}]},
    ]
    config = SupervisedConfig(examples="source", path=write(rows))
    prepared = prepare_supervised(config, default_format="chat", out=tmp_path)
    assert (prepared.kept, prepared.rejected) == (2, {"not_text": 1})
    assert "not to be trained on" in prepared.rejected_path.read_text()


@pytest.mark.parametrize("field", ["tool_calls", "thinking"])
@pytest.mark.parametrize("role", ["user", "system", "tool"])
def test_only_the_assistant_calls_and_thinks(role, field):
    value = [CALL] if field == "tool_calls" else "hm"
    rejection = rejection_of([USER, {"role": role, "content": "x", field: value}, USER])
    assert f"its role is {role}" in rejection.detail


def test_a_turn_of_a_tool_within_a_completion_makes_the_row_listed(prepare, write, tmp_path):
    rows = [
        {"prompt": "Q?", "chosen": [CALLS, TOOL, YES], "rejected": [NO]},
        {"prompt": "Q?", "chosen": [YES], "rejected": [CALLS, TOOL]},
        {"prompt": "Q?", "chosen": [YES], "rejected": [CALLS]},
    ]
    result = prepare(write(rows))
    assert [reason for _, _, reason in result.reasons()] == ["tool_turn_in_completion"] * 2
    assert "the completion of a row of its own" in result.rejected[0]["detail"]
    examples = [{"prompt": "Q?", "completion": [CALLS, TOOL, YES]}, {"messages": []}]
    examples[1] = {"prompt": "Q?", "completion": [CALLS]}
    config = SupervisedConfig(examples="source", path=write(examples))
    prepared = prepare_supervised(config, default_format="chat", out=tmp_path)
    assert (prepared.kept, prepared.rejected) == (1, {"tool_turn_in_completion": 1})


def test_dialogues_share_the_calls_that_are_alike(write, prepare):
    row = {"chosen": [USER, CALLS, TOOL, YES], "rejected": [USER, CALLS, TOOL, NO]}
    [pair] = prepare(write([row])).pairs
    assert [message.role for message in pair.prompt] == ["user", "assistant", "tool"]
    assert (pair.chosen, pair.rejected) == ((Message("assistant", "yes"),), (Message(**NO),))


def test_what_a_message_has_besides_is_of_the_pair(write, prepare):
    other = {**CALLS, "tool_calls": [{**CALL, "function": {**FUNCTION, "arguments": {}}}]}
    rows = [
        {"prompt": "Q?", "chosen": [message], "rejected": [NO]}
        for message in (CALLS, other, YES, {**YES, "thinking": "hm"}, {**CALLS, "name": "x"})
    ]
    result = prepare(write(rows))
    assert result.reasons() == [("data", 5, "duplicate")]
    assert len({pair.pair_id for pair in result.pairs}) == 4
    digests = {prepare(write([row])).result.digest for row in rows[:4]}
    assert len(digests) == 4
    for pair in result.pairs:
        assert pair.pair_id == pair_id(pair.prompt, chosen=pair.chosen, rejected=pair.rejected)


def test_messages_of_files_that_have_no_such_field_yet_are_taken_over(write, prepare, tmp_path):
    new = prepare(write([{"prompt": "Q?", "chosen": "yes", "rejected": "no"}])).result.path
    table, old = pq.read_table(new), tmp_path / "old.parquet"
    for side in ("prompt", "chosen", "rejected"):
        turns = [
            [{k: m[k] for k in ("role", "content")} for m in t] for t in table[side].to_pylist()
        ]
        table = table.set_column(table.schema.get_field_index(side), side, [turns])
    pq.write_table(table, old)
    with BatchWriter(tmp_path / "both.parquet", PAIRS_SCHEMA) as writer:
        for path in (old, new):
            for group in iter_row_groups(path):
                writer.add_table(group)
    first, second = pq.read_table(tmp_path / "both.parquet").to_pylist()
    assert first == second
