"""Whether a model gives the same answers in a layout as in two plain rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sdpo.errors import LayoutError
from sdpo.layouts import LAYOUTS, PromptGroup
from sdpo.tokens.store import TokenFile

_TOKENS = 4096
"""At most so many tokens in two rows are tried, but at least one pair."""


def longest_pairs(tokens: TokenFile, rows: Sequence[int]) -> list[int]:
    """Of ``rows`` the longest two, or one where two are too much for a trial."""
    at = np.asarray(rows)
    completions = np.maximum(tokens.chosen_lengths[at], tokens.rejected_lengths[at])
    lengths = tokens.prompt_lengths[at] + completions
    order = np.argsort(-lengths, kind="stable")[:2]
    fitting = order[: max(1, _TOKENS // int(2 * lengths[order[0]]))]
    return [int(row) for row in at[fitting]]


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
    for name in ("padded", layout):
        batch = LAYOUTS[name].collate(groups, pad_token_id=pad_token_id, device=device.type)
        try:
            with torch.set_grad_enabled(gradients):
                logps = module(batch.to(device))
                found = torch.autograd.grad(_mixed(logps), trained) if gradients else ()
        except (LayoutError, TypeError, ValueError, NotImplementedError) as error:
            if name == "padded":
                raise
            return str(error)
        results.append((logps.detach().double(), [g.double() for g in found]))
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


def _mixed(logps: torch.Tensor) -> torch.Tensor:
    """A sum in which no two completions count the same, so that none can stand for another."""
    weights = torch.linspace(1.0, -0.5, len(logps), device=logps.device)
    return (logps.float() * weights).sum()
