"""Decide which pairs stay when all are compared with each other, on key columns alone.

Texts stay on disk: here a pair takes 33 bytes of keys and 8 bytes of row number (and 8 more where a
source draws some of its pairs). Deciding takes 21 more.
"""

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from sdpo.data.keys import PairKeys, draw_key

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Others = npt.NDArray[np.int32]
"""Indices of pairs take half the room here: there are fewer than 2**31."""

KEPT, DUPLICATE, CONTRADICTORY, MAX_PAIRS, LIMIT, WEIGHT, UNFIT = range(7)
"""Every pair gets one of these decisions."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decisions say for every pair, in the order added, what is decided and by which other pair.

    ``other`` is the index of the pair that a duplicate repeats or a contradictory one contradicts,
    else -1. ``mixed`` is, per source with a weight, the number of pairs that its weight draws.
    """

    decision: npt.NDArray[np.uint8]
    other: Others
    repeated_prompts: int
    mixed: Mapping[int, int]


def mixture(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many of each the largest mixture of these proportions has that takes none twice.

    It takes all of the source that is short, and of the others their shares, rounded down.
    """
    # As decimals, so that 0.1 and 0.3 are as 1 and 3.
    exact = [Fraction(str(weight)) for weight in weights]
    scale = min(size / weight for size, weight in zip(sizes, exact, strict=True))
    return [int(scale * weight) for weight in exact]


class KeyTable:
    """The table has the keys of all pairs, source after source."""

    def __init__(self) -> None:
        # A pair and its swap share the smaller of their two keys and differ in which one it is.
        self._unordered = bytearray()
        self._is_swapped = bytearray()
        self._prompts = bytearray()
        self._rows = array("q")
        self._draws: dict[int, array[int]] = {}
        self._starts: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def start_source(self, *, draws: bool) -> None:
        """Begin the next source; ``draws``: some of its pairs may be drawn."""
        self._starts.append(len(self))
        if draws:
            self._draws[len(self._starts) - 1] = array("Q")

    def add(self, keys: PairKeys, *, row: int, seed: int) -> None:
        """Add one pair of the current source."""
        self._unordered += min(keys.pair, keys.swapped)
        self._is_swapped.append(keys.swapped < keys.pair)
        self._prompts += keys.prompt
        self._rows.append(row)
        draws = self._draws.get(len(self._starts) - 1)
        if draws is not None:
            draws.append(draw_key(seed, keys.pair))

    def row(self, index: int) -> int:
        """Return the row number of a pair in its source."""
        return self._rows[index]

    def source(self, index: int) -> int:
        """Return the index of a pair's source."""
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def span(self, source: int) -> slice:
        """Return the indices of a source's pairs."""
        stops = [*self._starts[1:], len(self)]
        return slice(self._starts[source], stops[source])

    def decide(
        self,
        *,
        max_pairs: Sequence[int],
        limit: int,
        weights: Sequence[float] = (),
        unfit: Collection[int] = (),
    ) -> Decisions:
        """Decide about every pair.

        Duplicates are found first, then contradictions, then each source draws (0: no bound), and
        the sources that have a weight are mixed from what these leave. The ``limit`` counts pairs
        besides the ``unfit``, given by index: those that come before the last one drawn are passed
        over.
        """
        fits = np.ones(len(self), np.bool_)
        fits[list(unfit)] = False
        decision = np.full(len(self), KEPT, np.uint8)
        other: Others = np.full(len(self), -1, np.int32)
        self._duplicates(decision, other)
        self._contradictions(decision, other)
        for source, bound in enumerate(max_pairs):
            if bound:
                self._draw(decision, source, bound, MAX_PAIRS)
            if limit:
                self._draw(decision, source, limit, LIMIT, fits)
        decision[(decision == KEPT) & ~fits] = UNFIT
        mixed = self._mixture(decision, weights)
        for source, drawn in mixed.items():
            self._draw(decision, source, drawn, WEIGHT)
        prompts = np.sort(_words(self._prompts)[decision == KEPT, 0])  # one word tells them apart
        repeated = int((prompts[1:] == prompts[:-1]).sum())
        return Decisions(decision, other, repeated, mixed)

    def _duplicates(self, decision: npt.NDArray[np.uint8], other: Others) -> None:
        swapped = np.frombuffer(self._is_swapped, np.uint8)
        keys = _words(self._unordered)
        rows = _repeated(keys)
        order, new = _grouped(keys[rows], swapped[rows])
        order = rows[order]
        first = order[new][np.cumsum(new) - 1]  # the sort is stable, so a group's first is earliest
        later = order != first
        decision[order[later]] = DUPLICATE
        other[order[later]] = first[later]

    def _contradictions(self, decision: npt.NDArray[np.uint8], other: Others) -> None:
        # Among pairs without duplicates, two with the same unordered key are swapped.
        keys = _words(self._unordered)
        kept = _repeated(keys)
        kept = kept[decision[kept] == KEPT]
        order, new = _grouped(keys[kept])
        second = np.flatnonzero(~new)
        left, right = kept[order[second - 1]], kept[order[second]]
        decision[left] = decision[right] = CONTRADICTORY
        other[left], other[right] = right, left

    def _mixture(self, decision: npt.NDArray[np.uint8], weights: Sequence[float]) -> dict[int, int]:
        weighted = [source for source, weight in enumerate(weights) if weight]
        if len(weighted) < 2:
            return {}
        kept = [int((decision[self.span(source)] == KEPT).sum()) for source in weighted]
        drawn = mixture(kept, [weights[source] for source in weighted])
        return dict(zip(weighted, drawn, strict=True))

    def _draw(
        self,
        decision: npt.NDArray[np.uint8],
        source: int,
        bound: int,
        reason: int,
        fits: Mask | None = None,
    ) -> None:
        """Leave out what comes after the first ``bound`` pairs (that fit, where that is known)."""
        span = self.span(source)
        kept = np.flatnonzero(decision[span] == KEPT)
        draws = np.array(self._draws[source], np.uint64)[kept]
        keys = _words(self._unordered)[span][kept]
        order = np.lexsort((keys[:, 1], keys[:, 0], draws))
        drawn = span.start + kept[order]
        before = np.arange(len(drawn)) if fits is None else np.cumsum(fits[drawn]) - fits[drawn]
        decision[drawn[before >= bound]] = reason


def _words(keys: bytearray) -> npt.NDArray[np.uint64]:
    """Return the 128-bit keys as rows of two words, uint64 ``[pairs, 2]``."""
    return np.frombuffer(keys, np.uint64).reshape(-1, 2)


def _repeated(keys: npt.NDArray[np.uint64]) -> Indices:
    """Return the rows of keys that may occur twice, ascending: nearly all others are left out.

    Only these need sorting by whole keys; to sort all by one word takes far less room.
    """
    words = keys[:, 0]
    order = np.argsort(words)
    ordered = words[order]
    same = np.zeros(len(order) + 1, np.bool_)
    np.equal(ordered[1:], ordered[:-1], out=same[1:-1])
    del ordered
    found: Indices = np.sort(order[same[1:] | same[:-1]])
    return found


def _grouped(
    keys: npt.NDArray[np.uint64], minor: npt.NDArray[np.uint8] | None = None
) -> tuple[Indices, Mask]:
    """Return a stable order in which equal keys are together, and where each group begins in it."""
    columns = [keys[:, 0], keys[:, 1]] + ([] if minor is None else [minor])
    order = np.lexsort(columns)
    new = np.ones(len(order), np.bool_)
    new[1:] = False
    for column in columns:
        ordered = column[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    return order, new
