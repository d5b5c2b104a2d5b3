"""Define what a forward pass gets: token ids of prompts and completions, laid out in rows.

A layout decides the arrangement; the answer is the same for all of them: one summed log-prob per
completion. See :mod:`sdpo.model.layouts` for the layouts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sdpo.model.layouts.moving import moved
from sdpo.model.layouts.segments import Segments


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A group is a prompt and its completions, int32 ``[tokens]`` each.

    A preference pair has two completions (chosen, rejected), a supervised example one.
    """

    prompt: np.ndarray
    completions: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch has prompt groups as rows of tokens, int64.

    ``input_ids``: ``[rows, length]``; ``attention_mask`` and ``position_ids`` likewise, None where
    the model's own are right. ``segments`` says who sees whom where a row holds several sequences.
    ``predictors``: flat indices into ``rows * length`` of the positions that predict completion
    tokens, ``targets``: the tokens they predict, completion by completion; ``scored``: their number
    per completion. ``sides``: completions per group. ``sequences``: in how many sequences each
    token counts, None where the mask says it.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None = None
    position_ids: torch.Tensor | None = None
    segments: Segments | None = None
    predictors: torch.Tensor
    targets: torch.Tensor
    scored: torch.Tensor
    sides: int
    sequences: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on ``device``."""
        if self.input_ids.device == device:
            return self
        mask, places, segments = self.attention_mask, self.position_ids, self.segments
        counts = self.sequences
        return replace(
            self,
            input_ids=moved(self.input_ids, device),
            attention_mask=mask if mask is None else moved(mask, device),
            position_ids=places if places is None else moved(places, device),
            segments=segments if segments is None else segments.to(device),
            predictors=moved(self.predictors, device),
            targets=moved(self.targets, device),
            scored=moved(self.scored, device),
            sequences=counts if counts is None else moved(counts, device),
        )


def targets_of(groups: Sequence[PromptGroup]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (targets, scored) of a batch: the completions' tokens, int64, and their lengths."""
    completions = [side for group in groups for side in group.completions]
    targets = torch.from_numpy(np.concatenate(completions).astype(np.int64))
    return targets, torch.tensor([len(side) for side in completions])
