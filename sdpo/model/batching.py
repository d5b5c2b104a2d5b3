"""Which pairs are computed together: global batches, ranks, micro-batches.

Pure functions of lengths and seeds, so every rank computes the same answer for all ranks, and a
replay computes it again. The loss does not depend on how a global batch was cut.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sdpo.config import TrainingConfig

CPU_MICRO_BATCH_TOKENS = 1024
GPU_MICRO_BATCH_TOKENS = 16384
"""Padded tokens of one micro-batch where the recipe sets none. On CPU a fixed number, since another
composition of a micro-batch changes the last bits of its sums."""

_HEAD_CPU_BYTES = 4 * 2**20
_HEAD_CPU_ROWS = 256
_HEAD_CPU_MOST_BYTES = 32 * 2**20
_HEAD_GPU_BYTES = 2**31
_HEAD_GPU_SHARE = 16
"""Of one chunk of the head's fp32 logits. On a CPU it stays in the cache while its few passes are
made, but is not cut below so many rows for it. A GPU reads the whole head for every chunk, and
reads and writes its fp32 gradient, which takes as long as the products of 500 rows: a chunk has
thousands, in at most a sixteenth of its memory."""

LANE_WEIGHTS = range(1_000_000, 64_000_001)
"""Of models that compute faster in lanes. The matrix products of a larger one keep several threads
busy, and another copy of its gradients would cost more memory than it saves time; a smaller one is
mostly Python, of which one thread runs at a time."""
_MOST_LANES = 4
"""Each holds the activations of a micro-batch."""

GRADIENT_FREE_FACTOR = 4
"""A forward without gradient holds no activations: so many times the tokens fit on a GPU."""


def micro_batch_tokens(setting: int, *, device: str) -> int:
    """Token budget of a micro-batch: as set, or by the device."""
    return setting or (CPU_MICRO_BATCH_TOKENS if device == "cpu" else GPU_MICRO_BATCH_TOKENS)


def head_rows(vocabulary: int, *, device: str, memory: int = 0) -> int:
    """Rows of hidden states whose logits exist at a time; ``memory``: bytes of a GPU, 0 unknown."""
    row = 4 * vocabulary
    if device != "cpu":
        most = min(_HEAD_GPU_BYTES, memory // _HEAD_GPU_SHARE or _HEAD_GPU_BYTES)
        return max(1, most // row)
    return max(1, _HEAD_CPU_BYTES // row, min(_HEAD_CPU_ROWS, _HEAD_CPU_MOST_BYTES // row))


def lane_count(weights: int, *, threads: int, device: str, processes: int) -> int:
    """Into how many threads of its own micro-batches a process divides its work
    (`sdpo.model.lanes`).

    As many as share its ``threads`` evenly where it is on a CPU and a model of so many ``weights``
    gains by it; else one.
    """
    if device != "cpu" or processes > 1 or weights not in LANE_WEIGHTS or not threads:
        return 1
    return next(count for count in range(_MOST_LANES, 0, -1) if threads % count == 0)


def training_lanes(training: TrainingConfig, lanes: int) -> int:
    """How many of ``lanes`` a training uses.

    Recomputation and compiled code belong to one thread, and so does the order of what is drawn at
    random.
    """
    drawn = training.lora_r and training.lora_dropout
    if training.gradient_checkpointing or training.compile or drawn:
        return 1
    return min(lanes, training.batch_size)


def resolve_layout(setting: str, *, attention: str) -> str:
    """Layout of tokens for a kernel: as set, or the one that computes least.

    A kernel that takes no masks cannot share prompts, and one that is spelled out gains nothing.
    """
    if setting != "auto":
        return setting
    return {"sdpa": "shared", "flash_attention_2": "packed"}.get(attention, "padded")


def optimizer_steps(items: int, *, batch_size: int, epochs: int, max_steps: int) -> int:
    """Optimizer steps of a stage: the last batch of an epoch may be smaller."""
    steps = math.ceil(items / batch_size) * epochs
    return min(steps, max_steps) if max_steps else steps


@lru_cache(maxsize=2)
def epoch_order(items: int, *, seed: int, epoch: int) -> np.ndarray:
    """Permutation of ``range(items)`` for an epoch (from 0)."""
    return np.random.default_rng([seed, epoch]).permutation(items)


def global_batch(step: int, *, items: int, batch_size: int, seed: int) -> tuple[np.ndarray, int]:
    """Items of optimizer step ``step`` (from 0), and its epoch (from 0)."""
    per_epoch = math.ceil(items / batch_size)
    epoch, index = divmod(step, per_epoch)
    order = epoch_order(items, seed=seed, epoch=epoch)
    return order[index * batch_size : (index + 1) * batch_size], epoch


def micro_batches(
    items: np.ndarray, costs: np.ndarray, *, budget: int, ranks: int, padded: bool
) -> list[list[np.ndarray]]:
    """Cut ``items`` into micro-batches, for every rank equally many.

    ``costs[i]`` are the tokens of item i alone in a forward. A micro-batch costs the sum of its
    items; where rows are ``padded``, as many times the largest as it has items. It holds at least
    one item. Items go to ranks by falling cost, each to the rank with least tokens. A rank with
    less work gets empty arrays.
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
    """First fit of items that come by falling cost: each to the first micro-batch with room."""
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
    """Runs of items that come by falling cost: every row is as long as the first's."""
    batches: list[np.ndarray] = []
    start = 0
    while start < len(items):
        fit = max(1, budget // int(costs[items[start]]))
        batches.append(np.array(items[start : start + fit], dtype=np.int64))
        start += fit
    return batches
