"""Resolve settings: tokens of a micro-batch, layout, lanes, the head's rows, optimizer steps.

These are pure functions without torch: identities, the check before a run and the stages all use
them.
"""

import math

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
"""One chunk of the head's fp32 logits takes at most one part in so many of a GPU's memory. On a CPU
it stays in the cache while its few passes are made, but is not cut below so many rows for it. A GPU
reads the whole head for every chunk, and reads and writes its fp32 gradient, which takes as long as
the products of 500 rows: a chunk has thousands, in at most a sixteenth of its memory."""


LANE_WEIGHTS = range(1_000_000, 64_000_001)
"""Models with so many weights compute faster in lanes. The matrix products of a larger one keep
several threads busy, and another copy of its gradients would cost more memory than it saves time; a
smaller one is mostly Python, of which one thread runs at a time."""
_MOST_LANES = 4
"""More would take too much memory: each lane holds the activations of a micro-batch."""


def micro_batch_tokens(setting: int, *, device: str) -> int:
    """Return the token budget of a micro-batch: as set, or by the device."""
    return setting or (CPU_MICRO_BATCH_TOKENS if device == "cpu" else GPU_MICRO_BATCH_TOKENS)


def head_rows(vocabulary: int, *, device: str, memory: int = 0) -> int:
    """Return the rows whose logits exist at a time; ``memory``: bytes of a GPU, 0 unknown."""
    row = 4 * vocabulary
    if device != "cpu":
        most = min(_HEAD_GPU_BYTES, memory // _HEAD_GPU_SHARE or _HEAD_GPU_BYTES)
        return max(1, most // row)
    return max(1, _HEAD_CPU_BYTES // row, min(_HEAD_CPU_ROWS, _HEAD_CPU_MOST_BYTES // row))


def lane_count(weights: int, *, threads: int, device: str, processes: int) -> int:
    """Return how many threads a process divides its work into (`sdpo.model.lanes`).

    They are as many as share its ``threads`` evenly where it is on a CPU and a model of so many
    ``weights`` gains by it; else one.
    """
    if device != "cpu" or processes > 1 or weights not in LANE_WEIGHTS or not threads:
        return 1
    return next(count for count in range(_MOST_LANES, 0, -1) if threads % count == 0)


def training_lanes(training: TrainingConfig, lanes: int) -> int:
    """Return how many of ``lanes`` a training uses.

    Recomputation, compiled code and the order of random draws need one thread.
    """
    drawn = training.lora_r and training.lora_dropout
    if training.gradient_checkpointing or training.compile or drawn:
        return 1
    return min(lanes, training.batch_size)


def resolve_layout(setting: str, *, attention: str) -> str:
    """Return the layout of tokens for a kernel: as set, or the one that computes least.

    A kernel that takes no masks cannot share prompts, and one that is spelled out gains nothing.
    """
    if setting != "auto":
        return setting
    return {"sdpa": "shared", "flash_attention_2": "packed"}.get(attention, "padded")


def optimizer_steps(items: int, *, batch_size: int, epochs: int, max_steps: int) -> int:
    """Return the optimizer steps of a stage: the last batch of an epoch may be smaller."""
    steps = math.ceil(items / batch_size) * epochs
    return min(steps, max_steps) if max_steps else steps
