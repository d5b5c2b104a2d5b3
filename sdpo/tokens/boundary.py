"""Where the prompt ends and the scored completion begins: one boundary for all sides of a row.

Works on ids alone. The boundary is the longest prefix common to the prompt's own ids and to every
side's full sequence, so it never lies past the prompt. It lies before the prompt's end where the
template prints a prompt otherwise when an answer follows, or where tokens merge across the border.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sdpo.errors import DataError
from sdpo.tokens.ragged import Counts, Ragged, common_prefix
from sdpo.tokens.template import Encoded, Row, describe, name_of
from sdpo.tokens.token_file import Flags, Ids, Reason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_MOVED_TOKENS = 8
"""Prompt tokens that may change hands in one row."""

MOST_MOVED_SHARE = 0.01
"""Share of the rows whose boundary may move; one row always may."""

_SHOWN_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows cut at their boundary and their length; a row with a ``reason`` has no ids.

    ``truncated``: per side, bool ``[rows]``. ``reasons``: per row, None where it can be used.
    """

    prompt: Ragged
    completions: tuple[Ragged, ...]
    truncated: tuple[Flags, ...]
    reasons: list[Reason | None]


def boundaries_of(encoded: Encoded) -> Counts:
    """Per row, the ids common to the prompt and to all full sequences, from the start."""
    common = [common_prefix(encoded.prompt, side) for side in encoded.sides]
    shortest: Counts = np.minimum.reduce(common)
    return shortest


def cut(
    encoded: Encoded,
    *,
    boundary: Counts,
    messages: Sequence[Counts],
    end_ids: Ids,
    max_length: int,
) -> Cut:
    """Keep the first ``max_length`` ids of every side, or say why the row cannot be used.

    ``messages`` are, per side, the messages of the completions, each of which may end in one of
    ``end_ids``. A truncated side loses its last end token.
    """
    completions = [side.part(boundary, max_length) for side in encoded.sides]
    truncated = [side.lengths > max_length for side in encoded.sides]
    masks = _masks(completions, truncated, boundary, messages, end_ids, max_length)
    reasons: list[Reason | None] = [None] * len(boundary)
    usable = np.ones(len(boundary), dtype=np.bool_)
    for reason, rows in masks.items():
        for row in np.flatnonzero(rows & usable).tolist():
            reasons[row] = reason
        usable &= ~rows
    return Cut(
        encoded.prompt.part(0, np.where(usable, boundary, 0)),
        tuple(ids.part(0, np.where(usable, ids.lengths, 0)) for ids in completions),
        tuple(is_cut & usable for is_cut in truncated),
        reasons,
    )


def _masks(
    completions: Sequence[Ragged],
    truncated: Sequence[Flags],
    boundary: Counts,
    messages: Sequence[Counts],
    end_ids: Ids,
    max_length: int,
) -> dict[Reason, Flags]:
    """The rows of every reason; a row has the first that is true of it."""
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


@dataclass(slots=True)
class MovedBoundaries:
    """Counts the rows whose boundary moved, and stops where they are not exceptions any more.

    Counts of parts of a file add up to those of the file, whoever counted them.
    """

    rows: int = 0
    moved: int = 0
    most_tokens: int = 0
    example: str = ""

    def add(self, other: "MovedBoundaries") -> None:
        """Count the rows of ``other``, which come after those counted here."""
        self.rows += other.rows
        self.moved += other.moved
        if other.most_tokens > self.most_tokens:
            self.most_tokens, self.example = other.most_tokens, other.example

    def check(self) -> None:
        """Call it after the last row.

        Raises:
            DataError: more than ``MOST_MOVED_SHARE`` of all rows moved.
        """
        if self.moved > max(1, MOST_MOVED_SHARE * self.rows):
            raise DataError(
                f"in {self.moved} of {self.rows} rows (at most {MOST_MOVED_SHARE:.0%} may be) "
                f"the last tokens of the prompt change when a completion follows: {self.example}"
            )


def count_moved(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row], encoded: Encoded, boundary: Counts
) -> MovedBoundaries:
    """Count ``rows``, of which ``boundary`` are the boundaries.

    Raises:
        DataError: more than ``MOST_MOVED_TOKENS`` of a row's prompt's tokens moved.
    """
    tokens = encoded.prompt.lengths - boundary
    most = int(tokens.max(initial=0))
    if not most:
        return MovedBoundaries(len(rows))
    too_many = np.flatnonzero(tokens > MOST_MOVED_TOKENS)
    row = int(too_many[0]) if len(too_many) else int(tokens.argmax())
    example = _explain(tokenizer, rows[row], encoded, index=row, boundary=int(boundary[row]))
    if len(too_many):
        raise DataError(
            f"{tokens[row]} tokens of a prompt (at most {MOST_MOVED_TOKENS} are accepted) are not "
            f"kept when a completion follows: {example}"
        )
    return MovedBoundaries(len(rows), int((tokens > 0).sum()), most, example)


def _explain(
    tokenizer: "PreTrainedTokenizerBase", row: Row, encoded: Encoded, *, index: int, boundary: int
) -> str:
    common = [common_prefix(encoded.prompt, side)[index] for side in encoded.sides]
    side, prompt = encoded.sides[int(np.argmin(common))][index], encoded.prompt[index]
    start = max(0, boundary - _SHOWN_TOKENS)

    def decoded(ids: Ids) -> str:
        return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False))

    alone = decoded(prompt[start : boundary + _SHOWN_TOKENS])
    followed = decoded(side[start : boundary + _SHOWN_TOKENS])
    if row["format"] == "chat":
        remedy = (
            f"The cause is the chat template of {name_of(tokenizer)}, which prints the "
            "end of the prompt otherwise when an answer follows, or sets no special token "
            "there: give another one in `model.chat_template`"
        )
    else:
        remedy = (
            "The cause is the border between prompt and completion in this source of "
            "`format: text`, where the last token of the prompt merges with the completion "
            "(usually the prompt ends in a space): move the space to the completion, or end "
            "the prompt at a token"
        )
    return (
        f"in {describe(row)} the prompt alone has {alone!r}, followed by a completion "
        f"{followed!r}, the same up to {decoded(prompt[start:boundary])!r}. "
        f"{remedy}"
    )
