"""Say who sees whom in rows that hold several sequences.

A segment is a run of query tokens with the run of key tokens they may look at; among those a token
sees the positions up to its own. Cutting attention by segments computes the visible rectangles and
nothing else, and needs no padding; FlexAttention gets the same rule as a block mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.model.layouts.block_masks import BLOCK, block_mask
from sdpo.model.layouts.moving import moved
from sdpo.model.layouts.segment import Segment

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_CPU_BLOCK = 128
"""A CPU computes a long segment in blocks of so many queries: see :func:`in_blocks`."""


def in_blocks(segment: Segment, positions: np.ndarray) -> Iterator[Segment]:
    """Yield the queries of ``segment`` in blocks, each with the run of keys that hold all it sees.

    The kernel computes the whole rectangle under a mask: so half of the square of a long completion
    with itself is left out. ``positions`` are those of all tokens of the row.
    """
    length = segment.last - segment.first
    edges = np.linspace(segment.first, segment.last, -(-length // _CPU_BLOCK) + 1).astype(int)
    keys = positions[segment.first_key : segment.last_key]
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        seen = np.flatnonzero(keys <= positions[first:last].max())
        yield Segment(
            first, last, segment.first_key + int(seen[0]), segment.first_key + int(seen[-1]) + 1
        )


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments hold the whole rule for one row of tokens.

    ``positions``, ``group`` and ``part``: int64 ``[tokens]``, the position of each token in its
    sequence, the group it belongs to, and 0 for prompt tokens or the number of its completion.
    ``on_host`` are the positions in the processor's memory, whatever the device.
    """

    parts: tuple[Segment, ...]
    positions: torch.Tensor
    group: torch.Tensor
    part: torch.Tensor
    on_host: np.ndarray = field(repr=False, compare=False)
    _masks: "dict[tuple[int | None, torch.dtype], list[torch.Tensor | None]]" = field(
        default_factory=dict, repr=False, compare=False
    )
    _blocks: "dict[int | None, BlockMask]" = field(default_factory=dict, repr=False, compare=False)
    _edges: list[tuple[torch.Tensor, int]] = field(default_factory=list, repr=False, compare=False)

    def to(self, device: torch.device) -> "Segments":
        """Return the same segments on ``device``."""
        positions, group, part = (
            moved(array, device) for array in (self.positions, self.group, self.part)
        )
        return Segments(self.parts, positions, group, part, self.on_host)

    def masks(self, window: int | None, dtype: torch.dtype) -> Sequence[torch.Tensor | None]:
        """Return each segment's additive mask ``[queries, keys]``; None where it is just causal."""
        key = window, dtype
        if key not in self._masks:
            self._masks[key] = [self._mask(segment, window, dtype) for segment in self.parts]
        return self._masks[key]

    def _mask(
        self, segment: Segment, window: int | None, dtype: torch.dtype
    ) -> torch.Tensor | None:
        own = (segment.first, segment.last) == (segment.first_key, segment.last_key)
        if own and (window is None or window >= segment.last - segment.first):
            return None
        queries = self.positions[segment.first : segment.last, None]
        keys = self.positions[None, segment.first_key : segment.last_key]
        hidden = keys > queries
        if window is not None:
            hidden |= queries - keys >= window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill_(hidden, float("-inf"))

    def allowed(self, window: int | None = None) -> torch.Tensor:
        """Return the whole rule, bool ``[tokens, tokens]``: may a row's token see a column's."""
        queries, keys = torch.meshgrid(*[torch.arange(len(self.positions))] * 2, indexing="ij")
        return self._sees(queries, keys, window)

    def _sees(self, query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor:
        same = self.group[query] == self.group[key]
        visible = (self.part[key] == 0) | (self.part[key] == self.part[query])
        distance = self.positions[query] - self.positions[key]
        near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return same & visible & near

    def sequences(self) -> tuple[torch.Tensor, int]:
        """Return the edges of a packed row's sequences, and the tokens of the longest one.

        Edges are where each begins and the last one ends, int32 ``[sequences + 1]``. A kernel that
        gets them need not look for them in positions, for which it would wait for the device, and
        in which each token of the padding is a sequence.
        """
        if not self._edges:
            edges = sorted({part.first_key for part in self.parts} | {len(self.on_host)})
            starts = torch.tensor(edges, dtype=torch.int32)
            longest = int(starts.diff().max())
            self._edges.append((moved(starts, self.positions.device), longest))
        return self._edges[0]

    def block_mask(self, window: int | None) -> "BlockMask":
        """Return the rule as FlexAttention's block mask."""
        if window not in self._blocks:
            self._blocks[window] = block_mask(
                self.parts, self.on_host, window=window, device=self.positions.device
            )
        return self._blocks[window]


def padded_length(tokens: int, *, device: str) -> int:
    """Return the length of a row of ``tokens`` on ``device``: FlexAttention wants whole blocks."""
    return -(-tokens // BLOCK) * BLOCK if device == "cuda" else tokens
