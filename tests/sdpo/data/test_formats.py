"""Recognising formats and normalising their rows."""

import pytest

from sdpo.config import ColumnsConfig
from sdpo.data.formats import Candidate, PairNormaliser
from sdpo.data.prompts import Rejection
from sdpo.errors import DataError


def normaliser(format="chat", strata=(), **columns):
    return PairNormaliser(format=format, columns=ColumnsConfig(**columns), strata=strata)


def convert(row, format="chat", **columns):
    made = normaliser(format, **columns).convert(row)[0]
    assert isinstance(made, Candidate), made
    return made


def reject(row, format="chat", **columns):
    made = normaliser(format, **columns).convert(row)[0]
    assert isinstance(made, Rejection), made
    return made


def turns(messages):
    return [(message.role, message.content) for message in messages]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


Q, C, R = ("user", "Q?"), [("assistant", "yes")], [("assistant", "no")]
S = ("system", "Be.")
SIDES = {"chosen": "yes", "rejected": "no"}
MESSAGE_SIDES = {"chosen": [assistant("yes")], "rejected": [assistant("no")]}
DIALOGUES = {
    "chosen": [user("Q?"), assistant("yes")],
    "rejected": [user("Q?"), assistant("no")],
}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "Q?"}],
    "chosen": {"from": "gpt", "value": "yes"},
    "rejected": {"from": "gpt", "value": "no"},
}

FORMATS = {
    "TRL explicit, standard": ({"prompt": "Q?", **SIDES}, [Q]),
    "TRL explicit, conversational": ({"prompt": [user("Q?")], **MESSAGE_SIDES}, [Q]),
    "TRL implicit, conversational": (DIALOGUES, [Q]),
    "prompt messages, text sides": ({"prompt": [user("Q?")], **SIDES}, [Q]),
    "prompt text, message sides": ({"prompt": "Q?", **MESSAGE_SIDES}, [Q]),
    "UltraFeedback binarized": (
        {"prompt": "Q?", "prompt_id": "x", "messages": DIALOGUES["chosen"], **DIALOGUES},
        [Q],
    ),
    "dialogues led by a system message": (
        {side: [{"role": "system", "content": "Be."}, *turn] for side, turn in DIALOGUES.items()},
        [S, Q],
    ),
    "dialogues and a system message in the prompt": (
        {"prompt": [{"role": "system", "content": "Be."}, user("Q?")], **DIALOGUES},
        [S, Q],
    ),
    "Intel orca": ({"system": "Be.", "question": "Q?", **SIDES}, [S, Q]),
    "Intel orca, empty system": ({"system": "", "question": "Q?", **SIDES}, [Q]),
    "OpenAI": (
        {
            "input": {
                "messages": [{"role": "developer", "content": "Be."}, user("Q?")],
                "tools": [],
                "parallel_tool_calls": True,
            },
            "preferred_output": [assistant("yes")],
            "non_preferred_output": [assistant("no")],
        },
        [S, Q],
    ),
    "LLaMA-Factory alpaca": ({"instruction": "Q", "input": "?", **SIDES}, [("user", "Q\n?")]),
    "LLaMA-Factory alpaca, other keys": (
        {**SIDES, "output": "yes", "input": "", "instruction": "Q?"},
        [Q],
    ),
    "LLaMA-Factory alpaca, system and history": (
        {"instruction": "Q?", "system": "Be.", "history": [["a", "b"], ["c", "d"]], **SIDES},
        [S, ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), Q],
    ),
    "LLaMA-Factory sharegpt": (SHAREGPT, [Q]),
    "LLaMA-Factory sharegpt, system": ({**SHAREGPT, "system": "Be."}, [S, Q]),
    "a system message in the dialogue comes before the column": (
        {
            **SHAREGPT,
            "system": "other",
            "conversations": [{"from": "system", "value": "Be."}, *SHAREGPT["conversations"]],
        },
        [S, Q],
    ),
    "axolotl chat_template.default": (
        {"messages": [user("Q?")], "chosen": assistant("yes"), "rejected": assistant("no")},
        [Q],
    ),
    "axolotl conversation": ({"conversation": [user("Q?")], **MESSAGE_SIDES}, [Q]),
    "axolotl chatml.argilla": (
        {"instruction": "Q?", "chosen_response": "yes", "rejected_response": "no"},
        [Q],
    ),
    "axolotl chatml.icr": ({"system": "Be.", "input": "Q?", **SIDES}, [S, Q]),
    "axolotl chatml.prompt_pairs": ({"system": "Be.", "prompt": "Q?", **SIDES}, [S, Q]),
    "axolotl chatml.ultra": ({"system": "Be.", "prompt": "Q?", **DIALOGUES}, [S, Q]),
    "request": ({"request": "Q?", **SIDES}, [Q]),
    "content parts": (
        {
            "prompt": [user([{"type": "text", "text": "Q"}, {"type": "text", "text": "?"}])],
            **SIDES,
        },
        [Q],
    ),
    "HH transcript": (
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: Q?\n\nAssistant: yes",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: Q?\n\nAssistant: no",
        },
        [("user", "a"), ("assistant", "b"), Q],
    ),
    "transcript as explicit prompt": (
        {"prompt": "\n\nHuman: Q?\n\nAssistant: ", "chosen": " yes", "rejected": "no"},
        [Q],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_known_formats_become_the_same_pair(name):
    row, prompt = FORMATS[name]
    pair = convert(row)
    assert (turns(pair.prompt), turns(pair.chosen), turns(pair.rejected)) == (prompt, C, R)


def test_ranked_answers_are_paired_best_against_worst():
    answers = [
        {"answer": "middle", "rank": 2.0},
        {"answer": "also worst", "rank": 7},
        {"answer": "yes", "rank": 1},
        {"answer": "no", "rank": 7},
    ]
    pair = convert({"prompt": "Q?", "answers": answers, "num_responses": 4})
    assert (turns(pair.prompt), turns(pair.chosen), turns(pair.rejected)) == ([Q], C, R)
    assert (pair.chosen_score, pair.rejected_score) == (-1, -7)
    level = [{"answer": text, "rank": 1} for text in "ab"]
    assert reject({"prompt": "Q?", "answers": level}).reason == "tie"
    assert reject({"prompt": "Q?", "answers": answers[:1]}).reason == "not_text"


def test_text_sources_keep_every_string_as_it_is():
    row = {"prompt": " Q?\r\n", "chosen": "\tyes ", "rejected": "e\u0301\u2028"}
    pair = convert(row, "text")
    assert turns(pair.prompt) == [("text", " Q?\r\n")]
    assert turns(pair.chosen) == [("text", "\tyes ")]
    assert turns(pair.rejected) == [("text", "e\u0301\u2028")]


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            "The sky is",
            " blue.",
            " green.",
        ),
        ({"chosen": "天空是蓝色的", "rejected": "天空是绿色的"}, "天空是", "蓝色的", "绿色的"),
        (
            {
                "chosen": "\n\nHuman: Q\n\nAssistant: It is so",
                "rejected": "\n\nHuman: Q\n\nAssistant: It is not",
            },
            "\n\nHuman: Q\n\nAssistant:",
            " It is so",
            " It is not",
        ),
        ({"instruction": "Q", "input": "in", **SIDES}, "Q\nin", "yes", "no"),
        ({"system": "Be.", "question": "Q", **SIDES}, "Be.\n\nQ", "yes", "no"),
    ],
)
def test_text_prompts_are_split_off_and_put_together(row, prompt, chosen, rejected):
    pair = convert(row, "text")
    assert turns(pair.prompt + pair.chosen + pair.rejected) == [
        ("text", prompt),
        ("text", chosen),
        ("text", rejected),
    ]


def test_implicit_text_in_chat_format_becomes_turns():
    pair = convert({"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert turns(pair.prompt) == [("user", "The sky is")]
    assert turns(pair.chosen) == [("assistant", " blue.")]


def test_transcripts_that_part_early_are_split_at_the_last_shared_mark():
    pair = convert(
        {
            "chosen": "\n\nHuman: Q?\n\nAssistant: yes\n\nHuman: more\n\nAssistant: b",
            "rejected": "\n\nHuman: Q?\n\nAssistant: no",
        }
    )
    assert turns(pair.prompt) == [Q]
    assert turns(pair.chosen) == [*C, ("user", "more"), ("assistant", "b")]
    assert turns(pair.rejected) == R


def test_dialogues_are_split_where_both_go_on_with_the_assistant():
    longer = [*DIALOGUES["rejected"], user("more"), assistant("b")]
    pair = convert({"chosen": [user("Q?"), assistant("yes")], "rejected": longer})
    assert turns(pair.prompt) == [Q]
    assert turns(pair.rejected) == [*R, ("user", "more"), ("assistant", "b")]


def test_transcript_marks_inside_an_ordinary_prompt_are_text():
    prompt = "Translate:\n\nHuman: hi\n\nAssistant: ho\n\nHuman: bye"
    assert turns(convert({"prompt": prompt, **SIDES}).prompt) == [("user", prompt)]


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"prompt": " \n", **SIDES}, "empty_prompt", "`prompt` says nothing"),
        ({"prompt": None, **SIDES}, "empty_prompt", "says nothing"),
        ({"prompt": [], **SIDES}, "empty_prompt", "says nothing"),
        ({"system": "Be.", "prompt": "", **SIDES}, "empty_prompt", "says nothing"),
        ({"chosen": "abc", "rejected": "xyz"}, "empty_prompt", "share no beginning"),
        (
            {"chosen": [user("a"), assistant("c")], "rejected": [user("b"), assistant("d")]},
            "empty_prompt",
            "share no beginning",
        ),
        ({"prompt": "Q", "chosen": "", "rejected": ""}, "empty_chosen", "`chosen`"),
        ({"prompt": "Q", "chosen": None, "rejected": "n"}, "empty_chosen", "`chosen`"),
        ({"prompt": "Q", "chosen": [], "rejected": [assistant("n")]}, "empty_chosen", "`chosen`"),
        ({"prompt": "Q", "chosen": "y", "rejected": "\u2003\n"}, "empty_rejected", "`rejected`"),
        ({"chosen": "same", "rejected": "same"}, "equal_sides", "same text"),
        ({"chosen": "", "rejected": ""}, "empty_chosen", "`chosen`"),
        ({"chosen": "Q a", "rejected": "Q"}, "empty_rejected", "`rejected`"),
        ({"prompt": "Q", "chosen": "a", "rejected": "a"}, "equal_sides", "same text"),
        ({**DIALOGUES, "rejected": DIALOGUES["chosen"]}, "equal_sides", "same text"),
        ({"prompt": "Q", **SIDES, "score_chosen": 3, "score_rejected": 3.0}, "tie", "score 3"),
        ({"prompt": "Q", "chosen": 5, "rejected": "n"}, "not_text", "`chosen` is a number"),
        ({"prompt": {"text": "Q"}, **SIDES}, "not_text", "unknown role"),
        ({"prompt": "Q", **SIDES, "images": ["a.png"]}, "not_text", "`images`"),
        ({"prompt": "Q", **SIDES, "tools": "[{}]"}, "not_text", "`tools`"),
        (
            {"prompt": [user([{"type": "image"}, {"type": "text", "text": "Q"}])], **SIDES},
            "not_text",
            "part of type `image`",
        ),
        (
            {
                "prompt": "Q",
                "chosen": [{"role": "assistant", "content": "", "tool_calls": [{}]}],
                "rejected": "n",
            },
            "not_text",
            "`tool_calls`",
        ),
        ({"prompt": [{"role": "narrator", "content": "Q"}], **SIDES}, "not_text", "narrator"),
    ],
)
def test_rows_that_are_no_pair_are_set_aside_with_the_reason(row, reason, detail):
    rejection = reject(row)
    assert rejection.reason == reason
    assert detail in rejection.detail


def test_empty_media_columns_and_null_tool_calls_are_no_obstacle():
    turn = {"role": "assistant", "content": "yes", "tool_calls": None}
    row = {"prompt": "Q?", "images": [], "tools": None, "chosen": [turn], "rejected": "no"}
    assert turns(convert(row).chosen) == C


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen-rating", "rejected-rating"),
        ("chosen_rating", "rejected_rating"),
        ("chosen_avg_rating", "rejected_avg_rating"),
    ],
)
def test_scores_are_recognised(chosen, rejected):
    pair = convert({"prompt": "Q", **SIDES, chosen: "8.5", rejected: 2})
    assert (pair.chosen_score, pair.rejected_score) == (8.5, 2.0)
    if "score" in chosen:
        pair = convert({"prompt": "Q", **SIDES, "metadata": {chosen: 8, rejected: 2}})
        assert (pair.chosen_score, pair.rejected_score) == (8, 2)


def test_a_score_that_is_no_number_counts_as_none_unless_the_column_was_named():
    row = {"prompt": "Q", **SIDES, "score_chosen": "high", "score_rejected": float("nan")}
    pair = convert(row)
    assert (pair.chosen_score, pair.rejected_score) == (None, None)
    with pytest.raises(DataError, match="`score_chosen` is 'high', not a number"):
        convert(row, chosen_score="score_chosen", rejected_score="score_rejected")


def test_mapped_columns_come_before_recognised_ones():
    row = {
        "prompt": "not this",
        "meta": {"ask": "Q?", "who": "Be."},
        "a.b": "yes",
        "worse": "no",
        "good": "2",
        "bad": 1,
    }
    pair = convert(
        row,
        prompt="meta.ask",
        system="meta.who",
        chosen="a.b",
        rejected="worse",
        chosen_score="good",
        rejected_score="bad",
    )
    assert (turns(pair.prompt), turns(pair.chosen), turns(pair.rejected)) == ([S, Q], C, R)
    assert (pair.chosen_score, pair.rejected_score) == (2, 1)


def test_one_mapped_column_leaves_the_others_to_be_recognised():
    row = {"prompt": "other", "ask": "Q?", **SIDES, "sys": "Be."}
    assert turns(convert(row, prompt="ask").prompt) == [Q]
    assert turns(convert(row, system="sys").prompt) == [S, ("user", "other")]


def test_a_mapped_column_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(DataError, match=r"columns\.chosen is `good`.*: prompt, meta\.x, rejected"):
        convert({"prompt": "Q", "meta": {"x": 1}, "rejected": "n"}, chosen="good")
    with pytest.raises(DataError, match="set together"):
        convert({"prompt": "Q", **SIDES, "s": 1}, chosen_score="s")
    source = normaliser(system="persona")
    source.convert({"prompt": "Q", **SIDES})
    with pytest.raises(DataError, match=r"no row has the column `persona`.*prompt, chosen"):
        source.finish()
    source.convert({"prompt": "Q", **SIDES, "persona": None})
    source.finish()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 1, "b": {"c": 2}}, r"no preference columns recognised\. Columns seen: a, b\.c\..*`"),
        ({"prompt": "Q", "completion": "c", "label": True}, "unpaired .*`completion` and `label`"),
        ({"instruction": "Q", "output": "o", "kto_tag": True}, "unpaired .*`kto_tag`"),
        ({"messages": [user("Q"), assistant("a")]}, "supervised data .`messages`"),
        ({"prompt": "Q", "completion": "c"}, "supervised data .`prompt` and `completion`"),
        ({"prompt": "Q", "chosen": "c"}, "one side alone .`chosen` without `rejected`"),
        ({"prompt": "Q"}, "prompts alone"),
        ({"text": "t"}, "plain text"),
    ],
)
def test_data_that_is_not_paired_is_refused_by_name(row, message):
    with pytest.raises(DataError, match=message):
        convert(row)


@pytest.mark.parametrize(
    "row",
    [DIALOGUES, SHAREGPT, {"prompt": [user("Q?")], **SIDES}, {"prompt": "Q", **MESSAGE_SIDES}],
)
def test_conversations_in_a_text_source_say_what_to_do(row):
    with pytest.raises(DataError, match=r"conversations without a chat template.*chat_template"):
        convert(row, "text")


def test_the_first_row_decides_the_format():
    source = normaliser()
    source.convert({"prompt": "Q", **SIDES})
    (made,) = source.convert({"question": "Q", **SIDES})
    assert isinstance(made, Rejection)
    assert made.reason == "empty_prompt"
    assert "no `prompt`; its columns are: question, chosen" in made.detail
    source = normaliser()
    source.convert(DIALOGUES)
    with pytest.raises(DataError, match="rows of two formats"):
        source.convert({"prompt": "Q", **SIDES})


def test_columns_that_are_not_used_are_known():
    source = normaliser(strata=["meta.topic"])
    row = {"id": 1, "prompt": "Q", **SIDES, "meta": {"topic": None}, "score_chosen": 1}
    source.convert(row)
    source.convert({**row, "note": "x", "meta": {"topic": 7}})
    assert source.unused_columns() == ("id", "score_chosen", "note")
    assert source.strata_of(row) == {"meta.topic": ""}
    assert source.strata_of({"meta": {"topic": 7}}) == {"meta.topic": "7"}
