"""Keep rows of ids of unequal length in one flat array, and work on all of them at once.

The work of a batch is a few numpy calls on the flat array, whatever the number of rows and tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo.tokens.token_file import Flags, Ids

Counts = NDArray[np.int64]
"""Counts are a length or position per row, int64 ``[rows]``."""


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """Row i is ``ids[offsets[i] : offsets[i + 1]]``: int32 ``[tokens]``, int64 ``[rows + 1]``."""

    ids: Ids
    offsets: Counts

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | Ids]) -> "Ragged":
        """Return the rows, copied."""
        ids = [np.asarray(row, dtype=np.int32) for row in rows]
        flat = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
        return cls.of_lengths(flat, np.array([len(row) for row in ids], dtype=np.int64))

    @classmethod
    def of_lengths(cls, ids: Ids, lengths: Counts) -> "Ragged":
        """Return the flat ``ids`` as rows of these lengths."""
        return cls(ids, np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Ids:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> Counts:
        """Return the number of ids in each row, int64 ``[rows]``."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "Ragged":
        """Return the rows at these indices, in their order."""
        return self.cut(self.offsets[rows], self.offsets[rows + 1])

    def part(self, start: Counts | int, stop: Counts | int) -> "Ragged":
        """Return of every row the ids from ``start`` up to ``stop``.

        Both are counted from the row's start and held within it.
        """
        lengths = self.lengths
        stop = np.minimum(stop, lengths)
        start = np.clip(start, 0, stop)
        return self.cut(self.offsets[:-1] + start, self.offsets[:-1] + stop)

    def cut(self, starts: Counts, stops: Counts) -> "Ragged":
        """Return a row per pair of positions in the flat array."""
        lengths = stops - starts
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(self.ids[at], offsets)

    def joined(self, other: "Ragged") -> "Ragged":
        """Return every row followed by the row of ``other``."""
        rows = np.arange(len(self))
        both = Ragged(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.offsets, other.offsets[1:] + len(self.ids)]),
        )
        order = np.stack([rows, rows + len(self)], axis=1).ravel()
        woven = both.take(order)
        return Ragged(woven.ids, woven.offsets[::2])

    def merged(self, counts: Counts) -> "Ragged":
        """Return consecutive rows as one: the first ``counts[0]``, the next ``counts[1]``, ..."""
        return Ragged(self.ids, self.offsets[np.concatenate(([0], np.cumsum(counts)))])

    def count(self, marked: Flags) -> Counts:
        """Return the number of marked ids per row; ``marked`` is bool ``[tokens]``."""
        total = np.concatenate(([0], np.cumsum(marked, dtype=np.int64)))
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    def leading(self, value: int) -> Counts:
        """Return how often each row repeats ``value`` at its start."""
        return _first(self, self.ids != value)


def common_prefix(a: Ragged, b: Ragged) -> Counts:
    """Return, per row, how many ids both have in common from the start."""
    shorter = np.minimum(a.lengths, b.lengths)
    left, right = a.part(0, shorter), b.part(0, shorter)
    return _first(left, left.ids != right.ids)


def _first(rows: Ragged, marked: Flags) -> Counts:
    """Return the position of each row's first marked id; its length where none is."""
    at = np.flatnonzero(marked)
    row = np.searchsorted(rows.offsets, at, side="right") - 1
    row, earliest = np.unique(row, return_index=True)
    first = rows.lengths
    first[row] = at[earliest] - rows.offsets[row]
    return first
