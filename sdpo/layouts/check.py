"""Whether a model gives the same answers in a layout as in two plain rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sdpo.errors import LayoutError
from sdpo.layouts import LAYOUTS, Batch, PromptGroup
from sdpo.out_of_memory import first_line, is_out_of_memory
from sdpo.tokens.store import TokenFile

_TOKENS = 2048
"""At most so many tokens of two pairs are tried, prompts once; one pair may have more."""


def longest_pairs(tokens: TokenFile, rows: np.ndarray) -> list[int]:
    """Of ``rows`` the longest two, or one where two are too much for a trial."""
    sides = tokens.chosen_lengths[rows] + tokens.rejected_lengths[rows]
    lengths = tokens.prompt_lengths[rows] + sides
    order = np.argsort(-lengths, kind="stable")[:2]
    return [int(row) for row in rows[order if lengths[order].sum() <= _TOKENS else order[:1]]]


def agrees(
    module: Any,
    groups: Sequence[PromptGroup],
    *,
    layout: str,
    pad_token_id: int,
    device: torch.device,
    gradients: bool,
) -> str:
    """Compare ``layout`` with padded rows; empty where they agree, else what is wrong.

    Values are compared by the sum of each completion, gradients on the parameters with one
    dimension (norms and biases), which every token and every layer reaches.
    """
    trained = [p for p in module.parameters() if p.dim() == 1 and p.requires_grad]
    gradients = gradients and bool(trained)
    module.eval()
    results: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    for name, parts in (("padded", _alone(groups)), (layout, [list(groups)])):
        try:
            found = _measured(
                module,
                [
                    LAYOUTS[name]
                    .collate(part, pad_token_id=pad_token_id, device=device.type)
                    .to(device)
                    for part in parts
                ],
                trained if gradients else [],
            )
        except Exception as error:
            # What an architecture, a kernel or a compiler raises is not known beforehand.
            if name == "padded" or is_out_of_memory(error):
                raise
            said = first_line(error)
            return said if isinstance(error, LayoutError) else f"{type(error).__name__}: {said}"
        results.append(found)
    (plain, plain_gradients), (ours, own_gradients) = results
    low = torch.is_autocast_enabled(device.type)
    rtol, atol = (2e-2, 1.0) if low else (1e-5, 1e-3)
    if not torch.allclose(ours, plain, rtol=rtol, atol=atol):
        worst = float((ours - plain).abs().max())
        return f"log-probs of its longest pairs differ by {worst:.3g} nats"
    for ours_of, plain_of in zip(own_gradients, plain_gradients, strict=True):
        scale = float(plain_of.norm())
        distance = float((ours_of - plain_of).norm())
        if distance > (0.1 if low else 1e-3) * scale + 1e-6:
            return f"gradients on its longest pairs differ by {distance:.3g} of {scale:.3g}"
    return ""


def _alone(groups: Sequence[PromptGroup]) -> list[list[PromptGroup]]:
    """Each completion with its prompt in a forward of its own: the trial takes no more memory than
    one row does."""
    return [[PromptGroup(group.prompt, (side,))] for group in groups for side in group.completions]


def _measured(
    module: Any, batches: Sequence[Batch], trained: list[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Log-probs of all completions, and the gradients of a sum in which no two count the same, so
    that none can stand for another."""
    weights = torch.linspace(1.0, -0.5, sum(len(batch.scored) for batch in batches))
    logps: list[torch.Tensor] = []
    gradients = [torch.zeros_like(p, dtype=torch.float64) for p in trained]
    for batch in batches:
        with torch.set_grad_enabled(bool(trained)):
            found = module(batch)
            here = weights[len(logps) : len(logps) + len(found)].to(found.device)
            if trained:
                parts = torch.autograd.grad((found.float() * here).sum(), trained)
                for total, part in zip(gradients, parts, strict=True):
                    total.add_(part.double())
        logps += found.detach().double()
    return torch.stack(logps), gradients
