"""The preference files beside the project, against what is known of them."""

import json
from pathlib import Path

import pytest

from sdpo.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "preferences"
pytestmark = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the folder `shared` is not beside the project"
)


@pytest.mark.parametrize(
    ("name", "read", "kept", "rejected", "repeated_prompts"),
    [
        ("orca_dpo_validation.jsonl", 284, 284, {}, 0),
        (
            "ultrafeedback_train.jsonl",
            1000,
            884,
            {"empty_chosen": 1, "empty_rejected": 1, "equal_sides": 4, "tie": 110},
            0,
        ),
        ("ultrafeedback_eval.jsonl", 200, 175, {"equal_sides": 1, "tie": 24}, 0),
        (
            "ultrafeedback_label_flip_20.jsonl",
            1000,
            707,
            {
                "empty_chosen": 1,
                "empty_rejected": 1,
                "equal_sides": 4,
                "scores_contradict": 177,
                "tie": 110,
            },
            0,
        ),
        ("polite_rude.json", 1100, 1094, {"equal_sides": 6}, 25),
        ("dialogue_stories.jsonl", 113, 113, {}, 48),
    ],
)
def test_irregular_rows_are_found_and_no_others(
    name, read, kept, rejected, repeated_prompts, prepare
):
    made = prepare(str(SHARED / name))
    counts = made.result.sources[0]
    assert (counts.read, counts.kept, counts.rejected) == (read, kept, rejected)
    assert round(made.result.repeated_prompt_share * kept) == repeated_prompts
    assert len({pair.pair_id for pair in made.pairs}) == kept


def test_the_irregular_rows_are_the_ones_that_are_known(prepare):
    made = prepare(str(SHARED / "ultrafeedback_train.jsonl"))
    # Rows of the file count from 0, lines from 1.
    rows = {(reason, row - 1) for _, row, reason in made.reasons() if reason != "tie"}
    assert rows == {
        ("empty_chosen", 833),
        ("empty_rejected", 478),
        ("equal_sides", 306),
        ("equal_sides", 655),
        ("equal_sides", 910),
        ("equal_sides", 997),
    }
    made = prepare(str(SHARED / "polite_rude.json"))
    assert [row for _, row, _ in made.reasons()] == [122, 226, 400, 566, 628, 676]


@pytest.mark.parametrize("format", ["chat", "text"])
def test_real_text_goes_through_unchanged(format, prepare):
    path = SHARED / "ultrafeedback_train.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    made = prepare(str(path), format=format)
    for pair in made.pairs:
        row = rows[pair.row - 1]
        texts = (pair.prompt[0].content, pair.chosen[0].content, pair.rejected[0].content)
        assert texts == (row["prompt"], row["chosen"], row["rejected"])
        assert pair.chosen_score == row["metadata"]["score_chosen"]


def test_system_and_user_turns_of_the_openai_format_are_kept(prepare):
    made = prepare(str(SHARED / "orca_dpo_validation.jsonl"))
    assert {tuple(m.role for m in pair.prompt) for pair in made.pairs} == {("system", "user")}
    assert len({pair.prompt[0].content for pair in made.pairs}) == 1


def test_flipped_labels_contradict_the_file_they_were_made_from(prepare):
    both = [
        str(SHARED / n) for n in ("ultrafeedback_label_flip_20.jsonl", "dialogue_stories.jsonl")
    ]
    train = {"path": str(SHARED / "ultrafeedback_train.jsonl"), "name": "original"}
    flipped = {"path": both[0], "name": "flipped", "contradictions": "keep"}
    made = prepare(flipped, both[1])
    assert made.result.pairs == 884 + 113
    # 200 were flipped, 23 of them ties; the other 707 pairs are the same in both files.
    with pytest.raises(DataError, match="contradictory 177, duplicate 707"):
        prepare(flipped, train)
    # By the scores, which were flipped along, all pairs are as they were.
    with pytest.raises(DataError, match="duplicate 884"):
        prepare(train, {**flipped, "contradictions": "swap"})
