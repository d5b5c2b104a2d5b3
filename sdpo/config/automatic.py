"""What settings come to: tokens of a micro-batch, layout, lanes, the head's rows, optimizer steps.

Pure functions without torch: what bears identity and what a check foretells is settled here as well
as what a stage does.
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
