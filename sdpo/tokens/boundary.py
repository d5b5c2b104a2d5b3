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
from sdpo.tokens.store import Ids, Reason
from sdpo.tokens.template import Encoded, Row, describe, name_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_MOVED_TOKENS = 8
"""Prompt tokens that may change hands in one row."""

MOST_MOVED_SHARE = 0.01
"""Share of the rows whose boundary may move; one row always may."""

_SHOWN_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Cut:
    """A row cut at its boundary and its length; with a ``reason``, no ids."""

    prompt: Ids
    completions: tuple[Ids, ...]
    truncated: tuple[bool, ...]
    reason: Reason | None


def boundary_of(encoded: Encoded) -> int:
    """Ids common to the prompt and to all full sequences, from the start."""
    return min(_common_prefix(encoded.prompt, side) for side in encoded.sides)


def cut(
    encoded: Encoded, *, boundary: int, messages: Sequence[int], end_ids: Ids, max_length: int
) -> Cut:
    """Keep the first ``max_length`` ids of every side, or say why the row cannot be used.

    ``messages`` are the messages of each side's completion, each of which may end in one of
    ``end_ids``. A truncated side loses its last end token.
    """
    completions = tuple(side[boundary:max_length] for side in encoded.sides)
    truncated = tuple(len(side) > max_length for side in encoded.sides)
    reason = _reason(completions, truncated, boundary, messages, end_ids, max_length)
    if reason:
        nothing = encoded.prompt[:0]
        return Cut(nothing, (nothing,) * len(completions), (False,) * len(completions), reason)
    return Cut(encoded.prompt[:boundary], completions, truncated, None)


def _reason(
    completions: Sequence[Ids],
    truncated: Sequence[bool],
    boundary: int,
    messages: Sequence[int],
    end_ids: Ids,
    max_length: int,
) -> Reason | None:
    if boundary == 0:
        return "empty_prompt"
    if boundary >= max_length:
        return "prompt_fills_length"
    ends = [int(np.isin(ids, end_ids).sum()) for ids in completions]
    if any(count == len(ids) for count, ids in zip(ends, completions, strict=True)):
        return "empty_completion"
    own = [count - is_cut for count, is_cut in zip(messages, truncated, strict=True)]
    if any(count > allowed for count, allowed in zip(ends, own, strict=True)):
        return "end_token_inside"
    first, *others = completions
    if others and all(np.array_equal(first, other) for other in others):
        return "equal_after_tokenisation"
    return None


def _common_prefix(a: Ids, b: Ids) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


class MovedBoundaries:
    """Counts the rows whose boundary moved, and stops where they are not exceptions any more."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.rows = 0
        self.moved = 0
        self.most_tokens = 0
        self._tokenizer = tokenizer
        self._example = ""

    def add(self, row: Row, encoded: Encoded, boundary: int) -> None:
        """Count a row.

        Raises:
            DataError: more than ``MOST_MOVED_TOKENS`` of its prompt's tokens moved.
        """
        self.rows += 1
        tokens = len(encoded.prompt) - boundary
        if tokens == 0:
            return
        self.moved += 1
        if tokens > self.most_tokens:
            self.most_tokens = tokens
            self._example = self._explain(row, encoded, boundary)
        if tokens > MOST_MOVED_TOKENS:
            raise DataError(
                f"{tokens} tokens of a prompt (at most {MOST_MOVED_TOKENS} are accepted) are not "
                f"kept when a completion follows: {self._example}"
            )

    def check(self) -> None:
        """Call it after the last row.

        Raises:
            DataError: more than ``MOST_MOVED_SHARE`` of all rows moved.
        """
        if self.moved > max(1, MOST_MOVED_SHARE * self.rows):
            raise DataError(
                f"in {self.moved} of {self.rows} rows (at most {MOST_MOVED_SHARE:.0%} may be) "
                f"the last tokens of the prompt change when a completion follows: {self._example}"
            )

    def _explain(self, row: Row, encoded: Encoded, boundary: int) -> str:
        side = min(encoded.sides, key=lambda ids: _common_prefix(encoded.prompt, ids))
        start = max(0, boundary - _SHOWN_TOKENS)
        alone = self._decoded(encoded.prompt[start : boundary + _SHOWN_TOKENS])
        followed = self._decoded(side[start : boundary + _SHOWN_TOKENS])
        if row["format"] == "chat":
            remedy = (
                f"The cause is the chat template of {name_of(self._tokenizer)}, which prints the "
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
            f"{followed!r}, the same up to {self._decoded(encoded.prompt[start:boundary])!r}. "
            f"{remedy}"
        )

    def _decoded(self, ids: Ids) -> str:
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False))
