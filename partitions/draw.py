"""Draw fractions within strata by a seed, with step sizes that come out right.

This module owns the draw that the strategies with fractions share.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from partitions.errors import PartitionError
from partitions.pairs import Codes, Pairs, argsort_by, ordering_key, run_starts
from partitions.strategy import Assignment, PartitionSettings, unknown

_SUM_TOLERANCE = 1e-6
_ROUNDING = 1e-9


def draw_fractions(
    pairs: Pairs, settings: PartitionSettings, *, strata: Sequence[str]
) -> Assignment:
    """Draw ``settings.fractions`` of the pairs of every stratum.

    A stratum is one combination of values of the columns ``strata`` (``source``, or names in
    ``pairs.strata``); without columns all pairs are one stratum.

    A pair's place in the draw depends on its id and ``settings.seed`` alone, and codes of strata
    may be numbered in any way. Raises :class:`PartitionError` for an unknown column and for
    fractions that are not positive or do not sum to 1.
    """
    fractions = normalised(settings.fractions)
    order = argsort_by(ordering_key(pairs.ids, settings.seed), pairs.ids)
    stratum = _crossed([_column(pairs, name) for name in strata], len(pairs))[order]
    grouped = np.argsort(stratum, kind="stable")
    starts = run_starts(stratum[grouped])
    sizes = np.diff(starts, append=len(pairs))
    # Strata are rounded in the order in which the draw meets them, whatever their codes.
    met = np.argsort(grouped[starts])
    counts = np.empty((len(sizes), len(fractions)), dtype=np.int64)
    counts[met] = step_sizes(sizes[met].tolist(), fractions)
    steps = np.tile(np.arange(1, len(fractions) + 1, dtype=np.int32), len(sizes))
    step_of = np.empty(len(pairs), dtype=np.int32)
    step_of[order[grouped]] = np.repeat(steps, counts.ravel())
    return Assignment(step_of, tuple(f"fraction {share:g}" for share in settings.fractions))


def step_sizes(sizes: Sequence[int], fractions: Sequence[float]) -> list[list[int]]:
    """Return whole numbers of pairs per stratum and step, [strata, steps], that sum to ``sizes``.

    The method is largest remainders, carried over: each number is its exact share rounded up or
    down, and the pairs left over go to the steps that are furthest behind over all strata so far.
    Without the carry, a step's share of many small strata would always be rounded the same way.
    """
    behind = [0.0] * len(fractions)
    rows = []
    for size in sizes:
        shares = [size * fraction for fraction in fractions]
        row = [math.floor(share + _ROUNDING) for share in shares]
        behind = [b + share - count for b, share, count in zip(behind, shares, row, strict=True)]
        open_steps = [t for t in range(len(row)) if shares[t] - row[t] > _ROUNDING]
        open_steps.sort(key=lambda t: -behind[t])
        for t in open_steps[: size - sum(row)]:
            row[t] += 1
            behind[t] -= 1
        rows.append(row)
    return rows


def normalised(fractions: tuple[float, ...]) -> list[float]:
    """Return fractions that sum to 1 exactly; :class:`PartitionError` where they are no shares."""
    if not fractions or not all(share > 0 for share in fractions):
        raise PartitionError(
            f"partition.fractions must be positive numbers, one per step, not {list(fractions)}"
        )
    total = math.fsum(fractions)
    if abs(total - 1) > _SUM_TOLERANCE:
        raise PartitionError(f"partition.fractions sum to {total:g}, not 1: {list(fractions)}")
    return [share / total for share in fractions]


def _column(pairs: Pairs, name: str) -> Codes:
    if name == "source":
        return pairs.source
    if name not in pairs.strata:
        raise PartitionError(f"partition.strata: {unknown(name, ('source', *pairs.strata))}")
    return pairs.strata[name]


def _crossed(columns: Sequence[Codes], n: int) -> NDArray[np.integer]:
    """Return one code per combination of the columns' codes, int[n].

    Its type is the smallest that holds it: numpy sorts codes of up to 16 bits in linear time."""
    crossed: NDArray[np.integer] = np.zeros(n, dtype=np.int64)
    values = 1
    for codes in columns:
        column, width = codes, int(codes.max(initial=0)) + 1
        if values * width > 2**62:
            present, crossed = np.unique(crossed, return_inverse=True)
            kinds, column = np.unique(codes, return_inverse=True)
            values, width = len(present), len(kinds)
        crossed = crossed * np.int64(width) + column
        values *= width
    return crossed.astype(np.min_scalar_type(values))
