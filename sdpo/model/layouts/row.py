"""Build one row of tokens run by run, with what every run may see."""

from collections.abc import Sequence

import numpy as np
import torch

from sdpo.model.layouts.batch import Batch, PromptGroup, targets_of
from sdpo.model.layouts.segment import Segment
from sdpo.model.layouts.segments import Segments, in_blocks, padded_length


class Row:
    """A row is built by adding runs of tokens; ``tokens`` is their number so far."""

    def __init__(self) -> None:
        self.tokens = 0
        self._group = -1
        self._ids: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._groups: list[np.ndarray] = []
        self._parts: list[np.ndarray] = []
        self._sequences: list[np.ndarray] = []
        self._segments: list[Segment] = []
        self._predictors: list[np.ndarray] = []

    def begin_group(self) -> None:
        """Begin a group: what follows sees nothing of what is there."""
        self._group += 1

    def add(
        self,
        ids: np.ndarray,
        *,
        position: int,
        part: int,
        backwards: bool = False,
        sequences: int = 1,
    ) -> None:
        """Add a run whose first token has ``position``; part 0 is seen by the whole group.

        Laid out ``backwards`` its last token comes first. It counts in so many ``sequences``.
        """
        count, order = len(ids), slice(None, None, -1 if backwards else 1)
        self._ids.append(ids[order])
        self._positions.append(np.arange(position, position + count)[order])
        self._groups.append(np.full(count, self._group))
        self._parts.append(np.full(count, part))
        self._sequences.append(np.full(count, sequences))
        self.tokens += count

    def see(self, first: int, last: int, first_key: int, last_key: int) -> None:
        """Let tokens ``[first, last)`` see ``[first_key, last_key)`` up to their own positions."""
        self._segments.append(Segment(first, last, first_key, last_key))

    def predict(self, predictors: np.ndarray) -> None:
        """Add the tokens that predict the next completion, in its order."""
        self._predictors.append(predictors)

    def batch(self, groups: Sequence[PromptGroup], *, pad_token_id: int, device: str) -> Batch:
        """Return the row as a batch for ``device``; padding there sees itself alone."""
        if (missing := padded_length(self.tokens, device=device) - self.tokens) > 0:
            self.begin_group()
            start = self.tokens
            self.add(np.full(missing, pad_token_id), position=0, part=0, sequences=0)
            self.see(start, self.tokens, start, self.tokens)
        targets, scored = targets_of(groups)
        positions = _joined(self._positions)
        at = positions.numpy()
        parts = self._segments
        if device == "cpu":
            parts = [part for whole in parts for part in in_blocks(whole, at)]
        return Batch(
            input_ids=_joined(self._ids)[None],
            position_ids=positions[None],
            segments=Segments(
                tuple(parts), positions, _joined(self._groups), _joined(self._parts), at
            ),
            predictors=_joined(self._predictors),
            targets=targets,
            scored=scored,
            sides=len(groups[0].completions),
            sequences=_joined(self._sequences)[None],
        )


def _joined(runs: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(runs).astype(np.int64))
