"""Small inputs that once went wrong, each told, read or refused as its `case.md` calls right."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import Sdpo

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"


@dataclass(frozen=True)
class Right:
    """What the commands say of a case: exit code, and fragments of what is printed, in order."""

    told: tuple[str, ...]
    code: int = 0
    command: str = "check"
    options: tuple[str, ...] = ()


RIGHT = {
    "ab_with_winner_called_prompts_alone": Right(
        (
            "two answers a row and which of them is better",
            "`columns: {chosen: response_1, rejected: response_2, winner: label, chosen_wins:",
        ),
        code=2,
    ),
    "all_refused_without_reason": Right(("12 12 1", "│good 0<|end|>")),
    "chat_template_kwargs_ignored": Right(
        (
            "warning: 12 pairs: variables for the chat template have no effect",
            "(first: row 1 of source `mine`, `custom_instructions`, `enable_thinking`)",
        )
    ),
    "check_passes_lora_on_tied_embedding": Right(
        ("adapters on the output head, or on an embedding that is tied to it",), code=2
    ),
    "csv_semicolon": Right(("12 12 1", "Question 0?<|end|><|assistant|>│good 0<|end|>")),
    "empty_reserve": Right(
        ("of 8 usable pairs none is set aside", "set data.reserve.fraction above 0"), code=2
    ),
    "json_text_cells": Right(
        ("<|user|>How much is 0 plus 0?<|end|><|assistant|>│It is 0.<|end|>",)
    ),
    "limit_draws_before_fit": Right(
        ("data.limit 20 passes over", "pairs that cannot be used", "200 20"),
        options=("--limit", "20"),
    ),
    "local_clone_split_prefix": Right(
        (
            "has no file of the split `train`",
            "test_prefs, test_sft, train_gen, train_prefs, train_sft",
        ),
        code=2,
    ),
    "ms_swift_rejected_response": Right(
        (
            "messages/rejected_response 12 12",
            "Question 0?<|end|><|assistant|>│good 0<|end|>",
        )
    ),
    "one_percent_moved_boundary": Right(
        ("1 pair is not used (template_drops_text)", "row 200", "system message: 'S.'")
    ),
    "partition_counts_before_tokens": Right(
        ("5 mine 5 ", "4 mine 4 ", "reserved: mine 1"), command="partition"
    ),
    "prompt_already_templated": Right(
        (
            "12 already_templated",
            "'<|bos|><|user|>Question 0?<|end|><|assistant|>'",
            "format: text",
        ),
        code=2,
    ),
    "scores_contradict_sides": Right(
        ("6 scores_contradict", "mine scores_contradict 6 line 1", "`contradictions` to `swap`")
    ),
    "supervised_not_checked": Right(
        ("no example is left to train on (24 prompt_fills_length)",), code=2
    ),
    "template_drops_text": Right(
        ("12 template_drops_text", "<think>", "Give another template in `model.chat_template`"),
        code=2,
    ),
    "transcript_prompt_and_whole_sides": Right(
        (
            "<|user|>Question 0?<|end|><|assistant|>│good answer 0<|end|>",
            "<|user|>Question 0?<|end|><|assistant|>│bad answer 0<|end|>",
        )
    ),
    "transcript_prompt_without_open_end": Right(
        ("<|assistant|>Hi<|end|><|user|>Question 0?<|end|><|assistant|>│good answer 0",)
    ),
}


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside the project")
@pytest.mark.parametrize("case", RIGHT)
def test_what_went_wrong_once_is_right(
    case: str, sdpo: Sdpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cases" / case
    shutil.copytree(CASES / case, place)
    (tmp_path / "models").symlink_to(CASES.parent / "models")
    monkeypatch.chdir(place)
    right = RIGHT[case]
    called = sdpo(right.command, "recipe.yaml", *right.options)
    assert called.code == right.code, called.told
    told = " ".join((called.out + called.err).split())
    at = 0
    for fragment in right.told:
        assert fragment in told[at:], told
        at = told.index(fragment, at)


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside the project")
def test_every_case_with_a_recipe_is_tried() -> None:
    assert {path.parent.name for path in CASES.glob("*/recipe.yaml")} == RIGHT.keys()
