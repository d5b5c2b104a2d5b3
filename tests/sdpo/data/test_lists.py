"""Lists of answers with scores or ranks, and the pairs that are made of them."""

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.config import ColumnsConfig
from sdpo.config.load import make_config
from sdpo.data.formats import Candidate, PairNormaliser
from sdpo.errors import ConfigError, DataError

TEXTS = ["fair", "good", "poor"]
SCORES = [5.0, 9.0, 2.0]


def made(row, *, format="chat", columns=None, **options):
    return PairNormaliser(
        format=format, columns=ColumnsConfig(**(columns or {})), **options
    ).convert(row)


def sides(row, **options):
    """(chosen, rejected) of every pair, as text."""
    found = made(row, **options)
    assert all(isinstance(pair, Candidate) for pair in found), found
    return [
        ("".join(m.content for m in pair.chosen), "".join(m.content for m in pair.rejected))
        for pair in found
    ]


def rejection(row, **options):
    (found,) = made(row, **options)
    return found.reason, found.detail


def assistant(text):
    return {"role": "assistant", "content": text}


def objects(text, score, values=SCORES, answer=str):
    return [{text: answer(t), score: v} for t, v in zip(TEXTS, values, strict=True)]


RANKS = [2, 1, 3]
LAYOUTS = {
    "responses and scores": {"prompt": "Q?", "responses": TEXTS, "scores": SCORES},
    "PRO's response and reward": {"prompt": "Q?", "response": TEXTS, "reward": SCORES},
    "distilabel": {"instruction": "Q?", "generations": TEXTS, "ratings": SCORES},
    "SimPO's": {"prompt": "Q?", "all_generated_responses": TEXTS, "all_rm_scores": SCORES},
    "lists in cells of CSV": {
        "prompt": "Q?",
        "responses": json.dumps(TEXTS),
        "scores": json.dumps(SCORES),
    },
    "ranks beside": {"question": "Q?", "answers": TEXTS, "ranks": RANKS},
    "ranks from 0": {"question": "Q?", "answers": TEXTS, "rank": [1, 0, 2]},
    "Nectar": {"prompt": "Q?", "answers": objects("answer", "rank", RANKS)},
    "UltraFeedback": {
        "instruction": "Q?",
        "completions": [
            {**entry, "fine-grained_score": 1, "rating": "3", "annotations": {}}
            for entry in objects("response", "overall_score")
        ],
    },
    "scores as text": {"prompt": "Q?", "answers": objects("text", "score", ["5", "9.0", "2"])},
    "messages": {"prompt": "Q?", "responses": list(map(assistant, TEXTS)), "scores": SCORES},
    "lists of messages": {
        "prompt": [{"role": "user", "content": "Q?"}],
        "responses": [[assistant(text)] for text in TEXTS],
        "scores": SCORES,
    },
    "messages in objects": {
        "prompt": "Q?",
        "completions": objects("messages", "reward", answer=lambda text: [assistant(text)]),
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_best_answer_is_paired_with_the_worst_whatever_ranks_them(name):
    (pair,) = made(LAYOUTS[name])
    assert isinstance(pair, Candidate), pair
    assert [m.content for m in (*pair.prompt, *pair.chosen, *pair.rejected)] == [
        *("Q?", "good", "poor")
    ]
    assert pair.chosen_score > pair.rejected_score
    assert [m.role for m in (*pair.chosen, *pair.rejected)] == ["assistant"] * 2


def test_a_text_source_has_lists_of_texts():
    assert sides(LAYOUTS["Nectar"], format="text") == [("good", "poor")]


def test_the_order_ranks_where_the_source_says_so():
    row = {"prompt": "Q?", "responses": TEXTS}
    assert sides(row, ranked_by="order") == [("fair", "poor")]
    assert sides(row | {"scores": SCORES}, ranked_by="order") == [("fair", "poor")]
    assert sides(row, ranked_by="order", pairing="all") == list(itertools.combinations(TEXTS, 2))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"responses": TEXTS}, "nothing is recognised that says which is better.*ranked_by: order"),
        ({"answers": objects("text", "quality")}, r"columns\.scores` \(more is better\) or"),
        (
            {"responses": TEXTS, "scores": SCORES, "ranks": RANKS},
            r"ranked by `scores` \(scores, beside it\) or `ranks` \(ranks, beside it\)",
        ),
        (
            {"answers": objects("text", "score"), "ratings": SCORES},
            r"`ratings` \(scores, beside it\) or `score` \(scores, in each answer\)",
        ),
        ({"answers": TEXTS, "ranking": [1, 2, 0]}, "`ranking` may be the rank of each answer or"),
    ],
)
def test_what_is_not_certain_is_refused_with_the_settings_that_decide(row, said):
    with pytest.raises(DataError, match=said):
        made({"prompt": "Q?"} | row)


def test_the_settings_that_a_refusal_names_decide():
    both = {"prompt": "Q?", "responses": TEXTS, "scores": SCORES, "ranks": [1, 2, 3]}
    assert sides(both, ranked_by="scores") == [("good", "poor")]
    assert sides(both, ranked_by="ranks") == [("fair", "poor")]
    assert sides(both, columns={"ranks": "ranks"}) == [("fair", "poor")]
    other = {"prompt": "Q?", "answers": objects("text", "quality")}
    assert sides(other, columns={"scores": "quality"}) == [("good", "poor")]
    ranking = {"prompt": "Q?", "answers": TEXTS, "ranking": [1, 2, 3]}
    assert sides(ranking, columns={"ranks": "ranking"}) == [("fair", "poor")]


def test_lists_of_other_names_are_mapped_and_paths_go_into_each_answer():
    rated = [
        {"says": text, "annotations": {"help": {"Rating": str(score)}}}
        for text, score in zip(TEXTS, SCORES, strict=True)
    ]
    columns = {
        **{"prompt": "ask", "answers": "data.tries", "answer_text": "says"},
        "scores": "annotations.help.Rating",
    }
    row = {"ask": "Q?", "data": {"tries": rated}}
    assert sides(row, columns=columns) == [("good", "poor")]
    with pytest.raises(DataError, match="neither a list beside it nor in"):
        made(row, columns=columns | {"scores": "annotations.truth.Rating"})
    reason, detail = rejection(row, columns=columns | {"answer_text": ""})
    assert reason == "not_text"
    assert "columns.answer_text" in detail


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"scores": [5.0, None, 2.0]}, "no_score", "answer 1 of `responses` has no score"),
        ({"scores": [5.0, "N/A", 2.0]}, "no_score", "`scores` is 'N/A'"),
        ({"scores": [5.0, float("nan"), 2.0]}, "no_score", "is nan"),
        ({"scores": [5.0, 10**5000, 2.0]}, "no_score", "is too long to show"),
        ({"scores": [5.0, "9" * 5000, 2.0]}, "no_score", "999 ..."),
        ({"scores": [5.0, 2.0]}, "lists_differ", "3 answers and `scores` 2 values"),
        ({"scores": None}, "lists_differ", "3 answers and `scores` 0 values"),
        ({"scores": [3, 3, 3]}, "tie", "both sides score 3"),
        ({"responses": ["one"], "scores": [1]}, "not_text", "at least two answers"),
        ({"responses": ["fair", "", "poor"]}, "empty_chosen", "says nothing"),
        ({"responses": ["fair", 7, "poor"]}, "not_text", "`responses` is a number"),
    ],
)
@pytest.mark.parametrize("pairing", ["best_worst", "all"])
def test_rows_that_give_no_pair_are_listed_with_the_reason(change, reason, detail, pairing):
    row = LAYOUTS["responses and scores"]
    source = PairNormaliser(format="chat", columns=ColumnsConfig(), pairing=pairing)
    source.convert(row)
    found = [each for each in source.convert(row | change) if not isinstance(each, Candidate)]
    assert (reason, detail in found[0].detail) == (found[0].reason, True), found


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=6),
    st.sampled_from([0, 1, 2.5]),
)
def test_all_pairs_are_those_whose_scores_differ_by_the_gap_and_none_twice(scores, gap):
    texts = [f"answer {k}" for k in range(len(scores))]
    row = {"prompt": "Q?", "responses": texts, "scores": scores}
    found = made(row, pairing="all", min_score_gap=gap)
    wanted = {
        (texts[i], texts[k])
        for i, k in itertools.permutations(range(len(scores)), 2)
        if scores[i] - scores[k] >= max(gap, 1)
    }
    pairs = [p for p in found if isinstance(p, Candidate)]
    assert {(p.chosen[0].content, p.rejected[0].content) for p in pairs} == wanted
    assert len(pairs) == len(wanted)
    if not wanted:
        assert [each.reason for each in found] == ["tie" if len(set(scores)) == 1 else "score_gap"]


def test_the_other_answer_is_drawn_by_seed_prompt_and_answers_alone():
    texts, scores = [f"answer {k}" for k in range(9)], [3, 9, 9, *range(6)]
    drawn = []
    for seed in range(40):
        row = {"prompt": "Q?", "responses": texts, "scores": scores}
        ((chosen, other),) = sides(row, pairing="best_random", seed=seed)
        assert chosen == "answer 1"
        drawn.append(other)
        # Behind the best one the order does not matter.
        rest = [(t, s) for t, s in zip(texts, scores, strict=True) if t != chosen]
        random.Random(seed).shuffle(rest)
        mixed = [(chosen, 9), *rest]
        again = dict(zip(("responses", "scores"), map(list, zip(*mixed, strict=True)), strict=True))
        again["prompt"] = "Q?"
        assert sides(again, pairing="best_random", seed=seed) == [(chosen, other)]
    assert set(drawn) <= set(texts) - {"answer 1", "answer 2"}
    assert len(set(drawn)) > 4


def test_a_gap_holds_for_pairs_with_scores_and_refuses_those_without():
    pair = {"prompt": "Q?", "chosen": "a", "rejected": "b", "score_chosen": 3, "score_rejected": 2}
    assert sides(pair, min_score_gap=1) == [("a", "b")]
    assert rejection(pair, min_score_gap=1.5)[0] == "score_gap"
    del pair["score_chosen"], pair["score_rejected"]
    assert "has not both scores" in rejection(pair, min_score_gap=1.5)[1]


def test_a_side_may_be_an_entry_of_a_list():
    row = {"prompt": "Q?", "response": TEXTS, "completions": [{"text": t} for t in TEXTS]}
    assert sides(row, columns={"chosen": "response.1", "rejected": "response.2"}) == [
        ("good", "poor")
    ]
    named = {"chosen": "completions.1.text", "rejected": "completions.0.text"}
    assert sides(row, columns=named) == [("good", "fair")]
    cells = {"prompt": "Q?", "response": json.dumps(TEXTS)}
    assert sides(cells, columns={"chosen": "response.1", "rejected": "response.2"}) == [
        ("good", "poor")
    ]
    for missing in ("response.3", "response." + "9" * 5000, "response.-1", "response.x"):
        with pytest.raises(DataError, match=r"columns\.rejected is"):
            made(row, columns={"chosen": "response.1", "rejected": missing})


def test_entries_whose_scores_could_say_the_opposite_are_refused_with_both_ways():
    row = {"prompt": "Q?", "responses": TEXTS, "scores": SCORES}
    entries = {"chosen": "responses.0", "rejected": "responses.1"}
    with pytest.raises(DataError, match=r"whatever `scores` says.*columns: \{answers: responses\}"):
        made(row, columns=entries)
    scored = entries | {"chosen_score": "scores.0", "rejected_score": "scores.1"}
    assert rejection(row, columns=scored)[0] == "scores_contradict"
    assert sides(row, columns=scored, contradictions="swap") == [("good", "fair")]
    inside = {"prompt": "Q?", "answers": objects("text", "score")}
    entries = {"chosen": "answers.0.text", "rejected": "answers.1.text"}
    with pytest.raises(DataError, match=r"chosen_score: answers\.0\.score"):
        made(inside, columns=entries)


@pytest.mark.parametrize(
    "options",
    [{"pairing": "all"}, {"ranked_by": "order"}, {"columns": {"scores": "score"}}],
)
def test_settings_of_lists_are_refused_where_there_is_none(options):
    with pytest.raises(DataError, match="would have no effect: its rows have no list of answers"):
        made({"prompt": "Q?", "chosen": "a", "rejected": "b"}, **options)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"columns": {"answers": "a", "chosen": "b"}}, "has `answers`.*and `chosen`"),
        ({"columns": {"scores": "a", "ranks": "b"}}, "has `scores` and `ranks`"),
        ({"columns": {"scores": "a"}, "ranked_by": "order"}, "ranked_by is `order`"),
    ],
)
def test_what_is_said_twice_is_refused(source, said):
    with pytest.raises(ConfigError, match=said):
        make_config({"data": {"sources": [{"path": "x.jsonl", **source}]}})


def test_lists_that_are_something_else_stay_refused_by_name():
    with pytest.raises(DataError, match="stepwise supervision"):
        made({"prompt": "Q?", "completions": TEXTS, "labels": [True, False, True]})
    with pytest.raises(DataError, match="supervised data"):
        made({"prompt": "Q?", "response": [assistant("yes")]})


def test_pairs_of_one_row_are_prepared_and_counted(write, prepare):
    rows = [LAYOUTS["responses and scores"] | {"prompt": f"Q{k}?"} for k in range(4)]
    rows.append(rows[0] | {"prompt": "T?", "scores": [1, 1, 1]})
    made = prepare({"path": write(rows), "pairing": "all"})
    (counts,) = made.result.sources
    assert (counts.read, counts.kept, counts.rejected) == (5, 12, {"tie": 1})
    assert counts.layout == "prompt/responses/scores"
    assert made.reasons() == [("data", 5, "tie")]
    assert [pair.row for pair in made.pairs] == [k for k in range(1, 5) for _ in range(3)]


def test_a_list_under_another_name_is_told_how_to_be_read():
    answers = [{"text": "yes", "rank": 0}, {"text": "no", "rank": 1}]
    row = {"prompt": "Q?", "replies": answers}
    with pytest.raises(DataError, match=r"`replies` may be a list of answers.*columns\.answers"):
        made(row)
    assert sides(row, columns={"answers": "replies", "ranks": "rank"}) == [("yes", "no")]
    chosen = {"question": "Q?", "summaries": answers, "choice": 1}
    with pytest.raises(
        DataError, match=r"chosen: summaries\.0\.text, rejected: summaries\.1\.text"
    ):
        made(chosen)
    columns = {"chosen": "summaries.0.text", "rejected": "summaries.1.text", "winner": "choice"}
    columns |= {"chosen_wins": "0", "rejected_wins": "1"}
    assert sides(chosen, columns=columns) == [("no", "yes")]
