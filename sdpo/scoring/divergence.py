"""Compute the KL divergence of one model from another along the first one's own samples.

For a completion y ~ P(.|x), the chain rule splits KL(P||Q) of the completions' distributions into
terms of one position each, KL(P(.|x, y_<t) || Q(.|x, y_<t)), which a full softmax gives exactly.
Their sum along y has the right expectation and far less variance than the log-ratio of y itself:

- ``kl``: the sum of exact terms;
- ``k1`` = sum of log P(y_t) - log Q(y_t): unbiased as well, may be negative;
- ``k3`` = sum of r - 1 - log r with r = Q(y_t) / P(y_t): unbiased, each term at least 0 (Schulman,
  "Approximating KL divergence", 2020).

All of it holds only where y is sampled from P itself: at temperature 1, without truncation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.model.batching import micro_batches
from sdpo.model.by_length import forget_lengths
from sdpo.model.chunked_head import head_logits
from sdpo.model.layouts import Batch
from sdpo.model.sequence_scorer import TokenSequence, collate
from sdpo.system.out_of_memory import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_BYTES, GPU_CHUNK_BYTES = 32 * 2**20, 2**30
"""A chunk of rows, with all its copies, takes so many: on a GPU enough to hide reading the head."""
COPIES = 6
"""So many arrays of a chunk's size are alive at once, in float64: two of log-probs, what they are
made from and what is made from them."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A divergence has sums over each sequence's scored tokens, float64 ``[sequences]``, in
    nats."""

    kl: np.ndarray
    k1: np.ndarray
    k3: np.ndarray
    tokens: np.ndarray


@torch.no_grad()
def divergence(
    policy: "PreTrainedModel",
    other: "PreTrainedModel",
    sequences: Sequence[TokenSequence],
    *,
    pad_token_id: int,
    device: torch.device,
    micro_batch_tokens: int,
    skip: int = 0,
) -> Divergence:
    """Compute KL(policy||other) along ``sequences`` that the policy sampled.

    Both share a vocabulary. ``skip``: scored tokens at the start of each sequence that are left
    out. On CPU a forward holds one sequence, so that no number depends on its neighbours.
    """
    lengths = np.array([len(sequence.ids) for sequence in sequences])
    budget = 1 if device.type == "cpu" else micro_batch_tokens
    (batches,) = micro_batches(
        np.arange(len(sequences)), lengths, budget=budget, ranks=1, padded=True
    )
    sums = np.zeros((3, len(sequences)))
    parts = Parts(what="the KL divergence", cost=lambda items: float(lengths[items].sum()))

    def computed(items: np.ndarray) -> torch.Tensor:
        batch = collate([sequences[i] for i in items], pad_token_id=pad_token_id).to(device)
        states = _states(policy, batch), _states(other, batch)
        return _terms((policy, other), states, batch.targets).cpu()

    for items, terms in (done for batch in batches for done in parts.of(batch, computed)):
        start = 0
        for item in items:
            end = start + sequences[item].scored
            sums[:, item] = terms[:, start + skip : end].sum(1)
            start = end
    tokens = np.array([max(0, sequence.scored - skip) for sequence in sequences])
    return Divergence(kl=sums[0], k1=sums[1], k3=sums[2], tokens=tokens)


def _states(model: "PreTrainedModel", batch: Batch) -> torch.Tensor:
    """Return the hidden states that predict the scored tokens, ``[scored, width]``, in order."""
    forget_lengths(model)
    hidden = model.get_decoder()(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    states: torch.Tensor = hidden.reshape(-1, hidden.shape[-1])[batch.predictors]
    return states


def chunk_rows(vocabulary: int, *, device: str) -> int:
    """Rows whose logits exist at a time."""
    most = CHUNK_BYTES if device == "cpu" else GPU_CHUNK_BYTES
    return max(1, most // (8 * COPIES * vocabulary))


def _terms(
    models: "tuple[PreTrainedModel, PreTrainedModel]",
    states: tuple[torch.Tensor, torch.Tensor],
    targets: torch.Tensor,
) -> torch.Tensor:
    """Return kl, k1 and k3 of every scored position, float64 ``[3, scored]``.

    The whole vocabulary is needed, so logits exist for one chunk of rows at a time and never in
    full.
    """
    vocabulary = models[0].get_output_embeddings().weight.shape[0]
    chunk = chunk_rows(vocabulary, device=targets.device.type)
    logits = [head_logits(model, hidden) for model, hidden in zip(models, states, strict=True)]
    parts = []
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        logp, logq = (torch.log_softmax(of(rows).double(), dim=-1) for of in logits)
        kl = (logp.exp() * (logp - logq)).sum(-1)
        taken = targets[rows, None]
        k1 = (logp.gather(1, taken) - logq.gather(1, taken)).squeeze(1)
        parts.append(torch.stack([kl, k1, torch.expm1(-k1) + k1]))
    return torch.cat(parts, dim=1)
