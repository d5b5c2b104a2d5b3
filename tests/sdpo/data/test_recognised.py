"""Data that was read as something else, or could be: recognised, refused or noted."""

import json

import pytest

from sdpo.config import ColumnsConfig, SupervisedConfig
from sdpo.data.formats import Candidate, PairNormaliser
from sdpo.data.prompts import Rejection
from sdpo.data.supervised import prepare_supervised
from sdpo.errors import DataError

SIDES = {"chosen": "yes", "rejected": "no"}
YES, NO = [("assistant", "yes")], [("assistant", "no")]


def made(row, format="chat", contradictions="refuse", **columns):
    normaliser = PairNormaliser(
        format=format, columns=ColumnsConfig(**columns), contradictions=contradictions
    )
    return normaliser.convert(row)[0], normaliser


def pair(row, format="chat", **options):
    candidate, _ = made(row, format, **options)
    assert isinstance(candidate, Candidate), candidate
    return tuple(
        [(m.role, m.content) for m in part]
        for part in (candidate.prompt, candidate.chosen, candidate.rejected)
    )


def rejection(row, **options) -> Rejection:
    found, _ = made(row, **options)
    assert isinstance(found, Rejection), found
    return found


TALK = "Human: Hello\n\nAssistant: Hi\n\nHuman: Q?"
TURNS = [("user", "Hello"), ("assistant", "Hi"), ("user", "Q?")]


@pytest.mark.parametrize("lead", ["", "\n\n", " "])
@pytest.mark.parametrize("end", ["", "\n\nAssistant:", "\n\nAssistant: "])
@pytest.mark.parametrize("start", ["", " ", "\n\nAssistant: "])
def test_a_transcript_is_split_whether_or_not_it_ends_in_the_assistants_mark(lead, end, start):
    sides = {name: start + text for name, text in SIDES.items()}
    assert pair({"prompt": lead + TALK + end, **sides}) == (TURNS, YES, NO)
    assert pair({"prompt": lead + "Human: Q?" + end, **sides}) == ([("user", "Q?")], YES, NO)


def test_a_transcript_that_ends_in_the_assistants_words_is_refused():
    found = rejection({"prompt": "Human: Q?\n\nAssistant: The answer is", **SIDES})
    assert found.reason == "unfinished_transcript"
    assert "end it after the human's words" in found.detail


@pytest.mark.parametrize(
    "prompt",
    ["\n\nHuman: Q?\n\nAssistant:", "Human: Q?", "Q?", [{"role": "user", "content": "Q?"}]],
)
def test_whole_transcripts_beside_a_prompt_bring_the_prompt_along(prompt):
    whole = {name: f"\n\nHuman: Q?\n\nAssistant: {text}" for name, text in SIDES.items()}
    assert pair({"prompt": prompt, **whole}) == ([("user", "Q?")], YES, NO)


def test_whole_transcripts_beside_a_prompt_in_a_text_source_hold_the_prompt_once():
    prompt = "\n\nHuman: Q?\n\nAssistant:"
    whole = {name: f"{prompt} {text}" for name, text in SIDES.items()}
    assert pair({"prompt": prompt, **whole}, "text") == (
        [("text", prompt)],
        [("text", " yes")],
        [("text", " no")],
    )


@pytest.mark.parametrize(
    "prompt",
    [
        "User: hi\nAssistant: ho\nUser: Q?",
        "Talk:\n\nHuman: hi\n\nAssistant: ho\n\nHuman: Q?",
        "### Human: hi\n### Assistant: ho\n### Human: Q?",
        "[USER] hi\n[ASSISTANT] ho\n[USER] Q",
        "Human: hi\nAssistant: ho\nHuman: Q?\nAssistant:",
        "Be kind. USER: hi ASSISTANT: ho USER: Q? ASSISTANT:",
        "Below is a task.\n\n### Instruction:\nQ?\n\n### Response:\n",
    ],
)
def test_what_looks_like_a_transcript_and_is_not_split_is_noted(prompt):
    found, normaliser = made({"prompt": prompt, **SIDES})
    assert [m.content for m in found.prompt] == [prompt]
    assert normaliser.notes == ["like_transcript"]


def test_a_transcript_of_single_lines_is_not_cut_within_a_turn():
    """Nor loses its first mark."""
    whole = {name: f"Human: Q?\nAssistant: {text}" for name, text in SIDES.items()}
    found, normaliser = made(whole)
    assert found.prompt[0].content.startswith("Human: Q?\nAssistant:")
    assert normaliser.notes == ["like_transcript"]


@pytest.mark.parametrize("column", ["system_prompt", "context", "history", "documents", "input"])
def test_a_column_that_may_be_of_the_prompt_and_is_not_read_is_noted(column):
    row = {"prompt": "Q?", **SIDES}
    assert made({**row, column: "Be kind."})[1].notes == ["prompt_left_out"]
    for nothing in ("", None, [], "[]"):
        assert made({**row, column: nothing})[1].notes == []
    assert made({**row, column: "Be kind."}, system=column)[1].notes == []
    alpaca = {"instruction": "Q?", "input": "x", "system": "y", "history": [["a", "b"]], **SIDES}
    assert made(alpaca)[1].notes == []


@pytest.mark.parametrize("word", ["NA", "NaN", "nan", "<NA>", "#N/A", "NULL"])
def test_what_programs_write_for_nothing_is_noted_where_it_is_a_text(word):
    for part in ("prompt", "chosen", "rejected"):
        found, normaliser = made({"prompt": "Q?", **SIDES, part: word})
        assert normaliser.notes == ["like_missing"]
        assert isinstance(found, Candidate)
    assert made({"prompt": "None?", "chosen": "None", "rejected": "null"})[1].notes == []


def test_a_prompt_that_ends_in_the_assistants_turn_is_refused():
    """Its answer would be a second turn of the assistant."""
    turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "It is"}]
    assert rejection({"prompt": turns, **SIDES}).reason == "unfinished_prompt"
    sides = {k: [*turns, {"role": "assistant", "content": v}] for k, v in SIDES.items()}
    found = rejection(sides)
    assert found.reason == "unfinished_prompt"
    assert "at the beginning of the answer" in found.detail


JSON_SIDES = [
    lambda text: json.dumps({"messages": [{"role": "assistant", "content": text}]}),
    lambda text: json.dumps([text]),
    lambda text: json.dumps({"text": text}),
]


@pytest.mark.parametrize("written", JSON_SIDES)
def test_json_is_not_cut_where_both_sides_begin_alike(written):
    found = rejection({name: written(text) for name, text in SIDES.items()})
    assert found.reason == "not_text"
    assert "convert the file" in found.detail


def test_json_beside_a_prompt_that_is_json_is_noted_and_answers_in_json_are_answers():
    sides = {name: json.dumps([text]) for name, text in SIDES.items()}
    assert made({"prompt": '["Q?"]', **sides})[1].notes == ["json_text"]
    assert made({"prompt": "Q?", **sides})[1].notes == []


def test_sides_that_name_an_answer_are_told_how_to_be_read():
    """They are no answers of one character."""
    for names, labels in (
        (("response_1", "response_2"), ("1", "2")),
        (("response_1", "response_2"), (1, 2)),
        (("response_0", "response_1"), ("response_0", "response_1")),
        (("answer_a", "answer_b"), ("A", "B")),
        (("A", "B"), ("B", "A")),
    ):
        row = {"prompt": "Q?", names[0]: "yes", names[1]: "no"}
        row |= dict(zip(("chosen", "rejected"), labels, strict=True))
        with pytest.raises(DataError, match=rf"names an answer.*chosen: {names[0]}, .*winner: ch"):
            made(row)
        columns = {"chosen": names[0], "rejected": names[1], "winner": "chosen"}
        columns |= {"chosen_wins": str(labels[0]), "rejected_wins": str(labels[1])}
        assert pair(row, **columns) == ([("user", "Q?")], YES, NO)
    beside = {"prompt": "Q?", **SIDES, "response_1": "yes", "response_2": "no"}
    assert pair(beside) == ([("user", "Q?")], YES, NO)


def test_an_arena_is_told_by_its_conversations_and_not_by_the_names_of_its_models():
    row = {"model_a": "gpt", "model_b": "claude", "winner": "model_b"}
    for name, text in zip("ab", SIDES.values(), strict=True):
        turns = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": text}]
        row[f"conversation_{name}"] = turns
    with pytest.raises(DataError, match="chosen: conversation_a, rejected: conversation_b"):
        made(row)
    columns = {"chosen": "conversation_a", "rejected": "conversation_b", "winner": "winner"}
    columns |= {"chosen_wins": "model_a", "rejected_wins": "model_b"}
    assert pair(row, **columns) == ([("user", "Q?")], NO, YES)


def test_winners_in_a_column_for_each_outcome_are_to_be_put_together():
    row = {"prompt": "Q?", "response_a": "yes", "response_b": "no"}
    row |= {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}
    with pytest.raises(DataError, match="`winner_tie` say it together: make one column"):
        made(row)


def test_sides_that_repeat_the_prompt_are_noted():
    repeated = {name: f"Tell me. {text}" for name, text in SIDES.items()}
    assert made({"prompt": "Tell me.", **repeated})[1].notes == ["prompt_repeated"]
    assert made({"prompt": "Tell me.", **SIDES})[1].notes == []


DIALOGUES = {
    name: [{"role": "user", "content": 'It\'s "Q"?'}, {"role": "assistant", "content": text}]
    for name, text in SIDES.items()
}


@pytest.mark.parametrize("write", [json.dumps, repr, lambda v: f" {json.dumps(v, indent=1)}\n"])
def test_messages_as_text_in_a_cell_are_messages(write):
    question = [("user", 'It\'s "Q"?')]
    cells = {name: write(value) for name, value in DIALOGUES.items()}
    assert pair(cells) == (question, YES, NO)
    prompt = write(DIALOGUES["chosen"][:1])
    answers = {name: write(value[1:]) for name, value in DIALOGUES.items()}
    assert pair({"prompt": prompt, **answers}) == (question, YES, NO)
    assert pair({"prompt": prompt, **SIDES}) == (question, YES, NO)
    single = {name: write(value[1]) for name, value in DIALOGUES.items()}
    assert pair({"prompt": prompt, **single}) == (question, YES, NO)
    sharegpt = write([{"from": "human", "value": 'It\'s "Q"?'}])
    assert pair({"conversations": sharegpt, **single}) == (question, YES, NO)


def test_messages_as_text_that_cannot_be_read_are_refused_with_what_to_do():
    found = rejection({"prompt": "[{'role': 'user', 'content': array(['Q'])}]", **SIDES})
    assert found.reason == "not_text"
    assert "`prompt` holds a list of messages as text" in found.detail


@pytest.mark.parametrize(
    "text", ['{"role": "user"} is JSON. Why?', '{"content": "x"}', "[1, 2]", "{a}", "[{}]"]
)
def test_text_that_is_no_list_of_messages_stays_text(text):
    assert pair({"prompt": text, **SIDES}) == ([("user", text)], YES, NO)


@pytest.mark.parametrize("empty", ["[]", "{}", "null", "", None, [], " [] "])
def test_columns_of_tools_or_images_that_hold_nothing_are_no_obstacle(empty):
    row = {"conversations": [{"from": "human", "value": "Q?"}], "tools": empty, **SIDES}
    assert pair(row) == ([("user", "Q?")], YES, NO)


def test_the_layouts_of_ms_swift_are_known():
    dialogue = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "yes"}]
    other = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "no"}]
    expected = ([("user", "Q?")], YES, NO)
    assert pair({"messages": dialogue, "rejected_response": "no"}) == expected
    assert pair({"messages": dialogue, "rejected_messages": other}) == expected
    older = {"query": "Q?", "response": "yes", "rejected_response": "no"}
    assert pair(older) == expected
    turns, *_ = pair({**older, "system": "S.", "history": [["a", "b"]]})
    assert turns == [("system", "S."), ("user", "a"), ("assistant", "b"), ("user", "Q?")]


SCORED = {"prompt": "Q?", **SIDES, "score_chosen": 1, "score_rejected": 2.5}


def test_scores_that_contradict_the_sides_refuse_the_pair_unless_told_otherwise():
    found = rejection(SCORED)
    assert found.reason == "scores_contradict"
    assert "scores 1 and the rejected one 2.5" in found.detail
    assert "`contradictions`" in found.detail
    assert pair(SCORED, contradictions="keep") == ([("user", "Q?")], YES, NO)
    assert pair(SCORED, contradictions="swap") == ([("user", "Q?")], NO, YES)
    swapped, _ = made(SCORED, contradictions="swap")
    assert (swapped.chosen_score, swapped.rejected_score) == (2.5, 1)
    agreeing = {**SCORED, "score_chosen": 3}
    assert pair(agreeing, contradictions="swap") == ([("user", "Q?")], YES, NO)


AB = {"prompt": "Q?", "response_1": "yes", "response_2": "no"}
WINNER = {"chosen": "response_1", "rejected": "response_2", "winner": "label"}


@pytest.mark.parametrize(
    ("values", "first", "second", "other"),
    [
        (("1", "2"), 1, 2, 0),
        (("1", "2"), 1.0, "2", None),
        (("model_a", "model_b"), "model_a", "Model_B", "tie"),
        (("true", "false"), True, False, ""),
    ],
)
def test_a_winner_column_says_which_answer_is_chosen(values, first, second, other):
    columns = {**WINNER, "chosen_wins": values[0], "rejected_wins": values[1]}
    assert pair({**AB, "label": first}, **columns) == ([("user", "Q?")], YES, NO)
    assert pair({**AB, "label": second}, **columns) == ([("user", "Q?")], NO, YES)
    assert rejection({**AB, "label": other}, **columns).reason == "no_winner"


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (("response_1", "response_2"), "label"),
        (("response_0", "response_1"), "better_response_id"),
        (("response_a", "response_b"), "winner"),
        (("human_ref_A", "human_ref_B"), "labels"),
        (("response1", "response2"), "overall_preference"),
    ],
)
def test_two_answers_and_a_winner_column_are_told_how_to_be_read(answers, winner):
    row = {"prompt": "Q?", answers[0]: "yes", answers[1]: "no", winner: 1}
    advice = rf"chosen: {answers[0]}, rejected: {answers[1]}, winner: {winner}, chosen_wins"
    with pytest.raises(DataError, match=rf"two answers.*{advice}.*1 in the first"):
        made(row)
    with pytest.raises(DataError, match=rf"in every row, whatever `{winner}` says.*{advice}"):
        made(row, chosen=answers[0], rejected=answers[1])
    with pytest.raises(DataError, match=r"chosen_wins and columns\.rejected_wins are set together"):
        made(row, chosen=answers[0], rejected=answers[1], winner=winner)


def test_a_source_of_which_nothing_is_left_shows_its_first_row(write, prepare):
    rows = [{"prompt": f"Q{i}?", "images": [{"name": "x"}], **SIDES} for i in range(3)]
    with pytest.raises(DataError, match=r"not_text 3\).*data\.jsonl, line 1: .*`images`"):
        prepare(write(rows))


def test_notes_are_counted_by_source_with_the_first_row(write, prepare):
    talk = "User: hi\nAssistant: ho\nUser: Q{}?"
    rows = [{"prompt": "Q?", **SIDES}, *({"prompt": talk.format(i), **SIDES} for i in range(3))]
    [source] = prepare(write(rows)).result.sources
    [note] = source.notes
    assert note.startswith("3 rows of source `data`, the first being line 2: the prompt looks")


def test_supervised_prompts_as_transcripts_or_json_are_read_as_pairs_are(write, tmp_path):
    rows = [
        {"prompt": TALK, "completion": "yes"},
        {"prompt": json.dumps([{"role": "user", "content": "Q?"}]), "completion": "yes"},
        {"prompt": "Human: Q?\n\nAssistant: The", "completion": "yes"},
    ]
    config = SupervisedConfig(enabled=True, examples="source", path=write(rows))
    prepared = prepare_supervised(config, default_format="chat", out=tmp_path)
    assert (prepared.kept, prepared.rejected) == (2, {"unfinished_transcript": 1})
