import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.tokens.boundary import Cut, boundaries_of, cut
from sdpo.tokens.ragged import Ragged
from sdpo.tokens.template import Encoded

END = np.array([2, 9], dtype=np.int32)


def encoded(*rows: list[list[int]]) -> Encoded:
    """Rows of a prompt and the full sequences of its sides."""
    prompt, *sides = [Ragged.of(column) for column in zip(*rows, strict=True)]
    return Encoded(prompt, tuple(sides), (np.zeros(len(rows), dtype=np.bool_),) * len(sides))


def cut_at(rows: Encoded, *, max_length: int = 100, messages: int = 1) -> Cut:
    return cut(
        rows,
        boundary=boundaries_of(rows),
        messages=[np.full(len(rows.prompt), messages)] * len(rows.sides),
        end_ids=END,
        max_length=max_length,
    )


def ids_of(result: Cut, row: int = 0) -> list[list[int]]:
    return [ids[row].tolist() for ids in (result.prompt, *result.completions)]


def test_the_boundary_is_that_of_the_side_that_agrees_least():
    row = encoded([[1, 5, 6, 7], [1, 5, 6, 7, 3, 2], [1, 5, 8, 3, 2]])
    assert boundaries_of(row).tolist() == [2]
    assert ids_of(cut_at(row)) == [[1, 5], [6, 7, 3, 2], [8, 3, 2]]


def test_the_boundary_never_lies_past_the_prompt():
    row = encoded([[1, 5], [1, 5, 6, 7, 2], [1, 5, 6, 8, 2]])
    assert boundaries_of(row).tolist() == [2]


def test_a_side_that_is_too_long_keeps_its_start_and_is_flagged():
    result = cut_at(encoded([[1, 5], [1, 5, 6, 7, 8, 2], [1, 5, 6, 2]]), max_length=4)
    assert ids_of(result) == [[1, 5], [6, 7], [6, 2]]
    assert [flags.tolist() for flags in result.truncated] == [[True], [False]]
    assert result.reasons == [None]


UNUSABLE = [
    ([[1, 5, 6, 7], [1, 5, 6, 7, 3, 2], [1, 5, 6, 7, 4, 2]], "prompt_fills_length"),
    ([[5], [6, 2], [7, 2]], "empty_prompt"),
    ([[1, 5], [1, 5, 2], [1, 5, 7, 2]], "empty_completion"),
    ([[1, 5], [1, 5, 2, 2], [1, 5, 7, 2]], "empty_completion"),
    ([[1, 5], [1, 5, 7, 2], [1, 5, 9, 2, 2]], "empty_completion"),
    ([[1], [1, 9, 7, 2], [1, 7, 2]], "end_token_inside"),
    ([[1], [1, 6, 2], [1, 7, 9, 3, 4]], "end_token_inside"),
    ([[1], [1, 6, 2], [1, 6, 2]], "equal_after_tokenisation"),
    ([[1], [1, 6, 7, 8, 3, 2], [1, 6, 7, 8, 4, 2]], "equal_after_tokenisation"),
    ([[1], [1, 9, 2], [1, 9, 9]], "empty_completion"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE)
def test_a_row_that_cannot_be_used_says_why_and_has_no_ids(row, reason):
    result = cut_at(encoded(row), max_length=4)
    assert result.reasons == [reason]
    assert ids_of(result) == [[], [], []]
    assert [flags.tolist() for flags in result.truncated] == [[False], [False]]


def test_rows_do_not_depend_on_their_neighbours():
    usable = [[1, 5], [1, 5, 6, 2], [1, 5, 7, 8, 2]]
    rows = [usable, *[row for pair in UNUSABLE for row in (pair[0], usable)]]
    result = cut_at(encoded(*rows), max_length=4)
    assert result.reasons == [None, *[r for pair in UNUSABLE for r in (pair[1], None)]]
    for row in range(0, len(rows), 2):
        assert ids_of(result, row) == [[1, 5], [6, 2], [7, 8]]
        assert [bool(flags[row]) for flags in result.truncated] == [False, True]
        assert row == 0 or ids_of(result, row - 1) == [[], [], []]


def test_an_end_token_beyond_the_cut_does_no_harm():
    row = encoded([[1], [1, 6, 7, 8, 9, 3, 2], [1, 7, 2]])
    assert cut_at(row, max_length=4).reasons == [None]


def test_a_completion_of_several_messages_may_hold_the_end_of_each():
    row = encoded([[1], [1, 6, 2, 7, 2, 8, 2], [1, 7, 2]])
    assert cut_at(row, messages=3).reasons == [None]
    assert cut_at(row, messages=2).reasons == ["end_token_inside"]


_IDS = st.lists(st.integers(3, 6), max_size=6)


@given(prompt=_IDS, chosen=_IDS, rejected=_IDS, tail=st.integers(0, 3), limit=st.integers(1, 14))
def test_prompt_and_completion_are_the_full_ids_cut_at_the_length(
    prompt, chosen, rejected, tail, limit
):
    kept = prompt[: len(prompt) - min(tail, len(prompt))]  # a border that moves by up to 3 tokens
    row = encoded([prompt, [*kept, *chosen, 2], [*kept, *rejected, 2]])
    result = cut_at(row, max_length=limit)
    if result.reasons == [None]:
        for completion, side, is_cut in zip(
            result.completions, row.sides, result.truncated, strict=True
        ):
            assert [*result.prompt[0], *completion[0]] == side[0][:limit].tolist()
            assert is_cut[0] == (len(side[0]) > limit)
        assert result.prompt[0].tolist() == prompt[: len(result.prompt[0])]


def test_eight_prompt_tokens_may_move_and_not_nine():
    prompt = [5] * 12
    assert cut_at(encoded([prompt, [5] * 4 + [7, 2]])).reasons == [None]
    result = cut_at(encoded([prompt, [5] * 4 + [7, 2]], [prompt, [5] * 3 + [7, 2]]))
    assert result.reasons == [None, "boundary_moved"]
    assert "9 tokens of the prompt (at most 8" in result.problems[1].detail
