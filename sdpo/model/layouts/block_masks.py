"""Make FlexAttention's mask of a row from the run of keys that each of its tokens may see.

In every layout what a token sees is one run of keys. So the rule is two numbers per token, and the
blocks follow from them: no matrix of tokens by tokens is ever made, where torch's own
``create_block_mask`` peaks at 13 bytes for each of its entries.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.model.layouts.moving import moved
from sdpo.model.layouts.segment import Segment

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""FlexAttention works on blocks of so many tokens: rows for it are padded to a multiple."""

MaskMod = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def runs_of_keys(parts: Sequence[Segment], positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last key that each token sees, int32 ``[tokens]`` each.

    ``positions`` are those of tokens in their sequences, int64 ``[tokens]``. The keys of a segment
    are in rising order, or a backwards completion is before its prompt. A token sees the keys up to
    its own position: the first ones in the former case, the last ones in the latter.
    """
    first = np.zeros(len(positions), dtype=np.int32)
    last = np.full(len(positions), -1, dtype=np.int32)
    for part in parts:
        keys = positions[part.first_key : part.last_key]
        own = positions[part.first : part.last]
        queries = slice(part.first, part.last)
        if keys[0] > keys[-1]:
            falling = int(np.argmax(np.diff(keys, append=keys[-1] + 1) > 0)) + 1
            later = falling - np.searchsorted(keys[:falling][::-1], own, side="right")
            first[queries], last[queries] = part.first_key + later, part.last_key - 1
        else:
            seen = np.searchsorted(keys, own, side="right")
            first[queries], last[queries] = part.first_key, part.first_key + seen - 1
    return first, last


def block_mask(
    parts: Sequence[Segment],
    positions: np.ndarray,
    *,
    window: int | None,
    device: torch.device,
) -> "BlockMask":
    """Make the rule a ``BlockMask`` of FlexAttention on ``device``, for a row of whole blocks.

    ``positions``: int64 ``[tokens]``. With a sliding ``window`` a token sees those keys of its run
    that are less than ``window`` positions before it.
    """
    from torch.nn.attention.flex_attention import BlockMask

    first, last = runs_of_keys(parts, positions)
    some, whole = _blocks(first, last, positions, window)
    numbers = [_packed(blocks, device) for blocks in (some & ~whole, whole)]
    low, high, at = (
        moved(torch.from_numpy(array.astype(np.int32)), device)
        for array in (first, last, positions)
    )
    rule = _in_run(low, high) if window is None else _in_run_and_near(low, high, at, window)
    return BlockMask.from_kv_blocks(
        *numbers[0],
        *numbers[1],
        BLOCK_SIZE=BLOCK,
        mask_mod=rule,
        seq_lengths=(len(positions), len(positions)),
    )


def _blocks(
    first: np.ndarray, last: np.ndarray, positions: np.ndarray, window: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return which blocks are computed, and which are wholly visible, bool ``[blocks, blocks]``.

    Rows are blocks of queries, columns blocks of keys. The first says where a query may see a key,
    the second where every query sees every key. A block in which no query sees a key may be in the
    first: the rule leaves its keys out.
    """
    lowest, highest, least, most = (
        edge(run.reshape(-1, BLOCK), axis=1) for run in (first, last) for edge in (np.min, np.max)
    )
    start = np.arange(len(lowest), dtype=np.int32) * BLOCK
    end = start + BLOCK - 1
    some = (start <= most[:, None]) & (end >= lowest[:, None])
    whole = (start >= highest[:, None]) & (end <= least[:, None])
    if window is not None:
        at = positions.reshape(-1, BLOCK)
        nearest = at.min(axis=1)[:, None] - at.max(axis=1)
        farthest = at.max(axis=1)[:, None] - at.min(axis=1)
        some, whole = some & (nearest < window), whole & (farthest < window)
    return some, whole


def _packed(blocks: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's number of blocks, and their indices first: int32, with two leading ones."""
    counts = blocks.sum(axis=1, dtype=np.int32)
    indices = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    made = (torch.from_numpy(array)[None, None] for array in (counts, indices))
    one, other = (moved(tensor, device) for tensor in made)
    return one, other


# The functions below are made by one piece of code each, so that a compiled kernel serves every
# batch: the tensors that they hold are inputs to it.


def _in_run(first: torch.Tensor, last: torch.Tensor) -> MaskMod:
    def sees(
        _batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (key >= first[query]) & (key <= last[query])

    return sees


def _in_run_and_near(
    first: torch.Tensor, last: torch.Tensor, positions: torch.Tensor, window: int
) -> MaskMod:
    def sees(
        _batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        near = positions[query] - positions[key] < window
        return (key >= first[query]) & (key <= last[query]) & near

    return sees
