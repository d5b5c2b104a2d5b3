"""Choose which items are computed together: global batches, ranks, micro-batches.

These are pure functions of lengths and seeds: every rank finds the same answer for all ranks, and
a replay finds it again. The loss does not depend on how a global batch was cut.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

GRADIENT_FREE_FACTOR = 4
"""Without gradients a forward keeps no activations: so many times the tokens fit on a GPU."""


@lru_cache(maxsize=2)
def epoch_order(items: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return a permutation of ``range(items)`` for an epoch (from 0), int64 ``[items]``."""
    return np.random.default_rng([seed, epoch]).permutation(items)


def global_batch(step: int, *, items: int, batch_size: int, seed: int) -> tuple[np.ndarray, int]:
    """Return the items of step ``step`` (from 0), int64 ``[k]``, and its epoch (from 0)."""
    per_epoch = math.ceil(items / batch_size)
    epoch, index = divmod(step, per_epoch)
    order = epoch_order(items, seed=seed, epoch=epoch)
    return order[index * batch_size : (index + 1) * batch_size], epoch


def micro_batches(
    items: np.ndarray, costs: np.ndarray, *, budget: int, ranks: int, padded: bool
) -> list[list[np.ndarray]]:
    """Cut ``items`` into micro-batches, equally many for every rank.

    ``costs[i]`` are the tokens of item i alone in a forward. A micro-batch costs the sum of its
    items; where rows are ``padded``, as many times the largest as it has items. It holds at least
    one item. Items go to ranks by falling cost, each to the rank with the fewest tokens. A rank
    with less work gets empty arrays.
    """
    by_cost = items[np.argsort(-costs[items], kind="stable")]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for item in by_cost:
        rank = min(range(ranks), key=load.__getitem__)
        shares[rank].append(int(item))
        load[rank] += int(costs[item])
    pack = _pack_padded if padded else _pack
    cut = [pack(share, costs, budget) for share in shares]
    most = max(len(batches) for batches in cut)
    empty = np.empty(0, dtype=np.int64)
    return [batches + [empty] * (most - len(batches)) for batches in cut]


def _pack(items: Sequence[int], costs: np.ndarray, budget: int) -> list[np.ndarray]:
    """Pack items by first fit: they come by falling cost, each goes where there is room first."""
    batches: list[list[int]] = []
    room: list[int] = []
    for item in items:
        cost = int(costs[item])
        index = next((i for i, left in enumerate(room) if cost <= left), len(batches))
        if index == len(batches):
            batches.append([])
            room.append(budget)
        batches[index].append(item)
        room[index] -= cost
    return [np.array(batch, dtype=np.int64) for batch in batches]


def _pack_padded(items: Sequence[int], costs: np.ndarray, budget: int) -> list[np.ndarray]:
    """Pack runs of items, which come by falling cost: every row is as long as the run's first."""
    batches: list[np.ndarray] = []
    start = 0
    while start < len(items):
        fit = max(1, budget // int(costs[items[start]]))
        batches.append(np.array(items[start : start + fit], dtype=np.int64))
        start += fit
    return batches
