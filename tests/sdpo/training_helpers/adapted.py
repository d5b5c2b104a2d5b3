"""Adapters that two updates of a preference moved, and the log-probs of a small model."""

import torch

from sdpo.config import TrainingConfig
from sdpo.model.policy import add_adapters
from sdpo.model.sequence_scorer import SequenceScorer

from .layouts import batch, pairs


def with_trained_adapters(model, training: TrainingConfig):
    """``model`` with adapters after two updates."""
    torch.manual_seed(0)
    adapted = add_adapters(model, training)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    for _ in range(2):
        chosen, rejected = logps(adapted).view(-1, 2).T
        (rejected - chosen).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted


def logps(model) -> torch.Tensor:
    """Log-probs of the completions of three prompts, by this project's scoring."""
    return SequenceScorer(model).train()(batch("padded", pairs()))
