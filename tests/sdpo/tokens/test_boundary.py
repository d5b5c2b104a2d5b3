import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.errors import DataError
from sdpo.tokens.boundary import Cut, MovedBoundaries, boundary_of, cut
from sdpo.tokens.template import Encoded

END = np.array([2, 9], dtype=np.int32)


def encoded(prompt: list[int], *sides: list[int]) -> Encoded:
    as_ids = [np.array(ids, dtype=np.int32) for ids in (prompt, *sides)]
    return Encoded(as_ids[0], tuple(as_ids[1:]), (False,) * len(sides))


def cut_at(row: Encoded, *, max_length: int = 100, messages: int = 1) -> Cut:
    return cut(
        row,
        boundary=boundary_of(row),
        messages=[messages] * len(row.sides),
        end_ids=END,
        max_length=max_length,
    )


def test_the_boundary_is_that_of_the_side_that_agrees_least():
    row = encoded([1, 5, 6, 7], [1, 5, 6, 7, 3, 2], [1, 5, 8, 3, 2])
    assert boundary_of(row) == 2
    result = cut_at(row)
    assert result.prompt.tolist() == [1, 5]
    assert [c.tolist() for c in result.completions] == [[6, 7, 3, 2], [8, 3, 2]]


def test_the_boundary_never_lies_past_the_prompt():
    assert boundary_of(encoded([1, 5], [1, 5, 6, 7, 2], [1, 5, 6, 8, 2])) == 2


def test_a_side_that_is_too_long_keeps_its_start_and_is_flagged():
    result = cut_at(encoded([1, 5], [1, 5, 6, 7, 8, 2], [1, 5, 6, 2]), max_length=4)
    assert [c.tolist() for c in result.completions] == [[6, 7], [6, 2]]
    assert result.truncated == (True, False)
    assert result.reason is None


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "reason"),
    [
        ([1, 5, 6, 7], [1, 5, 6, 7, 3, 2], [1, 5, 6, 7, 4, 2], "prompt_fills_length"),
        ([5], [6, 2], [7, 2], "empty_prompt"),
        ([1, 5], [1, 5, 2], [1, 5, 7, 2], "empty_completion"),
        ([1, 5], [1, 5, 2, 2], [1, 5, 7, 2], "empty_completion"),
        ([1, 5], [1, 5, 7, 2], [1, 5, 9, 2, 2], "empty_completion"),
        ([1], [1, 9, 7, 2], [1, 7, 2], "end_token_inside"),
        ([1], [1, 6, 2], [1, 7, 9, 3, 4], "end_token_inside"),
        ([1], [1, 6, 2], [1, 6, 2], "equal_after_tokenisation"),
        ([1], [1, 6, 7, 8, 3, 2], [1, 6, 7, 8, 4, 2], "equal_after_tokenisation"),
    ],
)
def test_a_row_that_cannot_be_used_says_why_and_has_no_ids(prompt, chosen, rejected, reason):
    result = cut_at(encoded(prompt, chosen, rejected), max_length=4)
    assert result.reason == reason
    assert [len(ids) for ids in (result.prompt, *result.completions)] == [0, 0, 0]
    assert result.truncated == (False, False)


def test_an_end_token_beyond_the_cut_does_no_harm():
    assert cut_at(encoded([1], [1, 6, 7, 8, 9, 3, 2], [1, 7, 2]), max_length=4).reason is None


def test_a_completion_of_several_messages_may_hold_the_end_of_each():
    row = encoded([1], [1, 6, 2, 7, 2, 8, 2], [1, 7, 2])
    assert cut_at(row, messages=3).reason is None
    assert cut_at(row, messages=2).reason == "end_token_inside"


_IDS = st.lists(st.integers(3, 6), max_size=6)


@given(prompt=_IDS, chosen=_IDS, rejected=_IDS, tail=st.integers(0, 3), limit=st.integers(1, 14))
def test_prompt_and_completion_are_the_full_ids_cut_at_the_length(
    prompt, chosen, rejected, tail, limit
):
    kept = prompt[: len(prompt) - min(tail, len(prompt))]  # a border that moves by up to 3 tokens
    row = encoded(prompt, [*kept, *chosen, 2], [*kept, *rejected, 2])
    result = cut_at(row, max_length=limit)
    if result.reason is None:
        for completion, side, is_cut in zip(
            result.completions, row.sides, result.truncated, strict=True
        ):
            assert [*result.prompt, *completion] == side[:limit].tolist()
            assert is_cut == (len(side) > limit)
        assert result.prompt.tolist() == prompt[: len(result.prompt)]


ROW = {"row": 3, "source": "tests", "format": "chat"}
STILL = encoded([5, 6], [5, 6, 7, 2])
MOVED = encoded([5, 6], [5, 7, 2])


def count(tokenizer, *, moved: int, still: int) -> MovedBoundaries:
    counter = MovedBoundaries(tokenizer)
    for row in [MOVED] * moved + [STILL] * still:
        counter.add(ROW, row, boundary_of(row))
    return counter


@pytest.mark.parametrize(("moved", "still"), [(0, 5), (1, 0), (1, 50), (2, 198)])
def test_a_few_moved_boundaries_are_accepted(make_tokenizer, moved, still):
    counter = count(make_tokenizer("chatml"), moved=moved, still=still)
    counter.check()
    assert (counter.moved, counter.most_tokens) == (moved, min(moved, 1))


@pytest.mark.parametrize(("moved", "still"), [(2, 0), (2, 197), (4, 296)])
def test_more_than_one_in_a_hundred_moved_boundaries_are_an_error(make_tokenizer, moved, still):
    counter = count(make_tokenizer("chatml"), moved=moved, still=still)
    with pytest.raises(DataError, match=f"in {moved} of {moved + still} rows.*row 3 of source"):
        counter.check()


def test_eight_prompt_tokens_may_move_and_not_nine(make_tokenizer):
    counter = MovedBoundaries(make_tokenizer("chatml"))
    prompt = [5] * 12
    counter.add(ROW, encoded(prompt, [5] * 4 + [7, 2]), 4)
    with pytest.raises(DataError, match=r"9 tokens of a prompt \(at most 8"):
        counter.add(ROW, encoded(prompt, [5] * 3 + [7, 2]), 3)
