"""Choose the reserve: pairs set aside before anything is trained, on which every model is measured.

This module owns which pairs are reserved. Membership is decided by prompt, through a keyed hash,
so it depends neither on the order of rows nor on what else is in the data, and a prompt reserved
in one source is reserved in all.
"""

import hashlib
import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from partitions.errors import PartitionError
from partitions.pairs import Codes, Ids, argsort_by, ordering_key, run_starts


def reserve_size(pairs: int, *, fraction: float, min_pairs: int, max_fraction: float) -> int:
    """Return how many pairs the reserve of a source of ``pairs`` pairs should have.

    It is max(fraction, min(min_pairs, max_fraction)): ``fraction`` rounded up, ``max_fraction``
    down.
    """
    # As decimals: in binary, 0.07 of 100 is above 7 and would be rounded up to 8.
    at_least = math.ceil(Fraction(str(float(fraction))) * pairs)
    at_most = math.floor(Fraction(str(float(max_fraction))) * pairs)
    return max(at_least, min(min_pairs, at_most))


def reserve_mask(
    prompt_ids: Ids,
    source: Codes,
    *,
    n_sources: int,
    fraction: float,
    min_pairs: int,
    max_fraction: float,
    key: str,
    pairs: int = 0,
) -> NDArray[np.bool_]:
    """Return which pairs are reserved, bool[n].

    prompt_ids: uint64[n, 2], the id of each pair's normalised prompt. source: int[n], codes below
    ``n_sources``. ``pairs`` is how many to reserve of every source; at 0 the shares
    decide, see :func:`reserve_size`. ``key`` keys the hash.

    Per source, whole prompts are taken in the order of their hashes until ``reserve_size`` pairs
    (or ``pairs``) are, so the last prompt's other pairs may exceed it. A source's last prompt is
    never taken by the source's own rule: something is left to train on, and a source of one prompt
    has no reserve of its own. Then a prompt taken in any source is reserved in all; so a source may
    lose more than it contributed. What a source contributes depends on that source and ``key``
    alone.

    Raises :class:`PartitionError` for columns and fractions that cannot be.
    """
    _check(prompt_ids, source, n_sources, fraction, min_pairs, max_fraction)
    if len(prompt_ids) == 0:
        return np.zeros(0, dtype=bool)
    rank = _ranks(prompt_ids, key)
    reserved = np.zeros(rank.max() + 1, dtype=bool)  # by prompt
    for code in range(n_sources):
        ranks = np.sort(rank[source == code])
        wanted = min(pairs, len(ranks)) or reserve_size(
            len(ranks), fraction=fraction, min_pairs=min_pairs, max_fraction=max_fraction
        )
        if wanted:
            last = min(ranks[wanted - 1], ranks[-1] - 1)
            reserved[ranks[: np.searchsorted(ranks, last, side="right")]] = True
    return reserved[rank]


def most_reserved(prompt_ids: Ids, source: Codes, *, n_sources: int, key: str) -> NDArray[np.int64]:
    """Return how many pairs of each source its own rule can set aside, int64[n_sources].

    They are all but those of the prompt that comes last by its hash. The arguments are those of
    :func:`reserve_mask`."""
    most = np.zeros(n_sources, dtype=np.int64)
    rank = _ranks(prompt_ids, key) if len(prompt_ids) else np.zeros(0, dtype=np.int64)
    for code in range(n_sources):
        ranks = rank[source == code]
        most[code] = (ranks < ranks.max(initial=0)).sum()
    return most


def _ranks(prompt_ids: Ids, key: str) -> NDArray[np.int64]:
    """Return the place of each pair's prompt in the order of hashes, int64[n]."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    order = argsort_by(ordering_key(prompt_ids, seed), prompt_ids)
    starts = run_starts(prompt_ids[order])
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))
    return rank


def _check(
    prompt_ids: Ids,
    source: Codes,
    n_sources: int,
    fraction: float,
    min_pairs: int,
    max_fraction: float,
) -> None:
    n = len(prompt_ids)
    if prompt_ids.dtype != np.uint64 or prompt_ids.shape != (n, 2) or source.shape != (n,):
        raise PartitionError(
            "prompt ids must be uint64[n, 2] with one source each, not "
            f"{prompt_ids.dtype}{list(prompt_ids.shape)} and {list(source.shape)}"
        )
    if n and not 0 <= source.min() <= source.max() < n_sources:
        raise PartitionError(
            f"codes of source go from 0 to {n_sources - 1}, not from {source.min()} to "
            f"{source.max()}"
        )
    if not (0 <= fraction < 1 and 0 <= max_fraction < 1 and min_pairs >= 0):
        raise PartitionError(
            "a reserve needs 0 <= fraction < 1, 0 <= max_fraction < 1 and min_pairs >= 0, not "
            f"{fraction}, {max_fraction} and {min_pairs}"
        )
