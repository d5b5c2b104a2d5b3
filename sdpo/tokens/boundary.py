"""Find where the prompt ends and the scored completion begins: one boundary for a row's sides.

It works on ids alone. The boundary is the longest prefix common to the prompt's own ids and to
every side's full sequence, so it is never past the prompt. It is before the prompt's end where
tokens merge across the border: the merged token is scored, as TRL does. Whether a text of a message
changes sides is checked in the text (:mod:`sdpo.tokens.whole`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sdpo.tokens.ragged import Counts, Ragged, common_prefix
from sdpo.tokens.reasons import DETAILS, Note, Problem, Reason
from sdpo.tokens.template import Encoded
from sdpo.tokens.token_file import Flags, Ids

MOST_MOVED_TOKENS = 8
"""At most so many prompt tokens of a row may be cut otherwise when an answer follows.

A merge across the border takes one; more may change where a long word without a space goes on.
"""


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut has rows up to their boundary and their length; a row with a problem has no ids.

    ``truncated`` is per side, bool ``[rows]``; ``problems`` is per row, None where it can be used.
    """

    prompt: Ragged
    completions: tuple[Ragged, ...]
    truncated: tuple[Flags, ...]
    problems: list[Problem | None]

    @property
    def reasons(self) -> list[Reason | None]:
        """Return why each row cannot be used; None where it can."""
        return [problem.reason if problem else None for problem in self.problems]


def boundaries_of(encoded: Encoded) -> Counts:
    """Return how many ids prompt and full sequences share from the start, int64 ``[rows]``."""
    common = [common_prefix(encoded.prompt, side) for side in encoded.sides]
    shortest: Counts = np.minimum.reduce(common)
    return shortest


def left_cut(
    encoded: Encoded, boundary: Counts, *, max_prompt_length: int, bos: int | None
) -> tuple[Encoded, Counts]:
    """Cut prompts on the left; return the rows and their boundaries.

    A prompt keeps, up to its boundary, its last ``max_prompt_length`` ids (0: all). A BOS in front
    stays there and is one of them. Rows that were cut are noted.
    """
    too_long = boundary > max_prompt_length
    if not max_prompt_length or not too_long.any():
        return encoded, boundary
    has_bos = encoded.prompt.leading(bos) > 0 if bos is not None else np.zeros_like(too_long)
    lead = (has_bos & too_long).astype(np.int64)
    start = np.where(too_long, boundary - max_prompt_length + lead, 0)

    def shortened(ids: Ragged) -> Ragged:
        return ids.part(0, lead).joined(ids.part(start, ids.lengths))

    noted: dict[Note, Sequence[int]] = {"prompt_cut": np.flatnonzero(too_long).tolist()}
    cut_rows = replace(
        encoded,
        prompt=shortened(encoded.prompt),
        sides=tuple(shortened(side) for side in encoded.sides),
        notes={**encoded.notes, **noted},
    )
    return cut_rows, np.where(too_long, max_prompt_length, boundary)


def cut(
    encoded: Encoded,
    *,
    boundary: Counts,
    messages: Sequence[Counts],
    end_ids: Ids,
    max_length: int,
) -> Cut:
    """Keep the first ``max_length`` ids of every side, or say why the row cannot be used.

    ``messages`` are, per side, the numbers of messages in the completions, each of which may end in
    one of ``end_ids``. A truncated side loses its last end token.
    """
    completions = [side.part(boundary, max_length) for side in encoded.sides]
    truncated = [side.lengths > max_length for side in encoded.sides]
    masks = _masks(completions, truncated, boundary, messages, end_ids, max_length)
    if encoded.plain is not None:
        masks["end_token_inside"] &= ~encoded.plain
    problems: list[Problem | None] = [encoded.problems.get(i) for i in range(len(boundary))]
    usable = np.array([problem is None for problem in problems], dtype=np.bool_)
    moved = encoded.prompt.lengths - boundary
    for row in np.flatnonzero((moved > MOST_MOVED_TOKENS) & usable).tolist():
        usable[row] = False
        problems[row] = Problem(
            "boundary_moved",
            f"{moved[row]} tokens of the prompt (at most {MOST_MOVED_TOKENS} are accepted) are cut "
            "otherwise when an answer follows: end the prompt at a word's end",
        )
    for reason, rows in masks.items():
        for row in np.flatnonzero(rows & usable).tolist():
            problems[row] = Problem(reason, DETAILS[reason])
        usable &= ~rows
    return Cut(
        encoded.prompt.part(0, np.where(usable, boundary, 0)),
        tuple(ids.part(0, np.where(usable, ids.lengths, 0)) for ids in completions),
        tuple(is_cut & usable for is_cut in truncated),
        problems,
    )


def _masks(
    completions: Sequence[Ragged],
    truncated: Sequence[Flags],
    boundary: Counts,
    messages: Sequence[Counts],
    end_ids: Ids,
    max_length: int,
) -> dict[Reason, Flags]:
    """Return the rows of every reason, bool ``[rows]``; a row has the first that is true of it."""
    ends = [ids.count(np.isin(ids.ids, end_ids)) for ids in completions]
    empty = [count == ids.lengths for count, ids in zip(ends, completions, strict=True)]
    own = [count - is_cut for count, is_cut in zip(messages, truncated, strict=True)]
    inside = [count > allowed for count, allowed in zip(ends, own, strict=True)]
    first, *others = completions
    equal = [
        (first.lengths == other.lengths) & (common_prefix(first, other) == first.lengths)
        for other in others
    ]
    return {
        "empty_prompt": boundary == 0,
        "prompt_fills_length": boundary >= max_length,
        "empty_completion": np.logical_or.reduce(empty),
        "end_token_inside": np.logical_or.reduce(inside),
        "equal_after_tokenisation": np.logical_and.reduce(equal) & bool(others),
    }
