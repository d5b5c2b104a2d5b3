"""Score models whose rotary frequencies follow the longest sequence of a forward.

LongRoPE (arXiv 2402.13753) has one set of frequencies up to a border and another beyond it; dynamic
NTK scaling has others for every length beyond it, and keeps those of the longest forward so
far. Either way what such a model gives a sequence depends on its neighbours and on the past.
Here each is computed as if it were alone: each set of frequencies has a forward of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from sdpo.model.layouts import Batch

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Frequencies = tuple[int, ...]


def changes_itself(model: nn.Module) -> bool:
    """Return whether a forward changes the model, as frequencies that follow the length do."""
    return any(True for _ in _borders(model))


def frequencies(model: nn.Module, length: int) -> Frequencies:
    """Return what identifies the frequencies for ``length``: equal for lengths that share them."""
    return tuple(
        max(length, border) if kind == "dynamic" else int(length > border)
        for _, kind, border in _borders(model)
    )


def one_set_of_frequencies(model: nn.Module, lengths: np.ndarray) -> bool:
    """Return whether sequences of ``lengths``, int ``[n]``, all have the same frequencies."""
    if not len(lengths):
        return True
    return frequencies(model, int(lengths.min())) == frequencies(model, int(lengths.max()))


def other_frequencies(kind: str, strategy: str) -> str:
    """Return the refusal of a model of this ``kind`` where ranks share its weights.

    Each process would run as many forwards as its own rows need, and sharing needs equally many of
    all.
    """
    return (
        f"{kind} has other rotary frequencies for long sequences than for short ones, which "
        f"{strategy} cannot compute apart: set launch.strategy to ddp or deepspeed_zero2, or "
        "data.max_length so that all sequences are short"
    )


def forget_lengths(model: nn.Module) -> None:
    """Let the next forward compute its frequencies anew, whatever was computed before."""
    for module, kind, _ in _borders(model):
        if kind != "dynamic":
            continue
        for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
            setattr(module, name, 0)


def split(model: nn.Module, batch: Batch) -> tuple[list[Batch], torch.Tensor]:
    """Split the padded ``batch`` by sets of frequencies; also return the order of its completions.

    The order, int64 ``[completions]``, is where each of the batch's completions is among all
    parts'.
    """
    lengths = _lengths(batch)
    groups: dict[Frequencies, list[int]] = {}
    for row, length in enumerate(lengths.tolist()):
        groups.setdefault(frequencies(model, length), []).append(row)
    if len(groups) == 1:
        return [batch], torch.arange(len(lengths))
    targets = torch.functional.split(batch.targets, batch.scored.tolist())
    parts = [_part(batch, rows, lengths[rows], targets) for rows in groups.values()]
    return parts, torch.tensor([row for rows in groups.values() for row in rows]).argsort()


def _part(
    batch: Batch, rows: list[int], lengths: torch.Tensor, targets: tuple[torch.Tensor, ...]
) -> Batch:
    """Return some rows of a padded batch, cut to the longest of them."""
    device = batch.input_ids.device
    longest, at = int(lengths.max()), torch.tensor(rows, device=device)
    scored = batch.scored[at.to(batch.scored.device)]
    ends = zip(lengths.tolist(), scored.tolist(), strict=True)
    predictors = [
        torch.arange(row * longest + length - count - 1, row * longest + length - 1)
        for row, (length, count) in enumerate(ends)
    ]
    ragged = int(lengths.min()) < longest and batch.attention_mask is not None
    mask = batch.attention_mask
    return replace(
        batch,
        input_ids=batch.input_ids[at, :longest],
        attention_mask=mask[at, :longest] if ragged and mask is not None else None,
        predictors=torch.cat(predictors).to(device),
        targets=torch.cat([targets[row] for row in rows]),
        scored=scored,
        sides=1,
    )


def _lengths(batch: Batch) -> torch.Tensor:
    """Return the tokens of each row, int ``[rows]`` on the CPU."""
    if batch.attention_mask is None:
        return torch.full((len(batch.input_ids),), batch.input_ids.shape[1])
    return batch.attention_mask.sum(1).cpu()


def _borders(model: nn.Module) -> Iterator[tuple[nn.Module, str, int]]:
    """Yield rotary embeddings that follow the length, with their kind and where that begins."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        config: PretrainedConfig | None = getattr(module, "config", None)
        each = kinds.items() if isinstance(kinds, Mapping) else [(None, kinds)]
        for layer_type, kind in each:
            if "dynamic" in str(kind):
                whole = getattr(config, "max_position_embeddings", 0)
                yield module, "dynamic", int(getattr(module, "original_max_seq_len", whole))
            elif kind == "longrope":
                rope = getattr(config, "rope_parameters", None) or {}
                rope = rope.get(layer_type, {}) if layer_type else rope
                whole = getattr(config, "original_max_position_embeddings", 0)
                yield module, "longrope", int(rope.get("original_max_position_embeddings", whole))
