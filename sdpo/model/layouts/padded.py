"""Lay a pair out as two rows, padded on the right to one length: every architecture takes it."""

from collections.abc import Sequence

import numpy as np
import torch

from sdpo.model.layouts.batch import Batch, PromptGroup, targets_of


def collate(groups: Sequence[PromptGroup], *, pad_token_id: int, device: str) -> Batch:
    """Make one row per completion, its prompt in front."""
    del device  # the same everywhere
    rows = [(group.prompt, side) for group in groups for side in group.completions]
    lengths = np.array([len(prompt) + len(side) for prompt, side in rows])
    longest = int(lengths.max())
    ids = np.full((len(rows), longest), pad_token_id, dtype=np.int64)
    predictors: list[np.ndarray] = []
    for number, (prompt, side) in enumerate(rows):
        ids[number, : len(prompt)] = prompt
        ids[number, len(prompt) : lengths[number]] = side
        start = number * longest + len(prompt) - 1
        predictors.append(np.arange(start, start + len(side)))
    mask = None
    if lengths.min() < longest:
        mask = torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64))
    targets, scored = targets_of(groups)
    return Batch(
        input_ids=torch.from_numpy(ids),
        attention_mask=mask,
        predictors=torch.from_numpy(np.concatenate(predictors)),
        targets=targets,
        scored=scored,
        sides=len(groups[0].completions),
    )
