"""Preference objectives: pure functions of summed log-probs, the paper's equation beside each.

Every function takes four float tensors of shape ``[pairs]`` in nats (sums over completion tokens)
and returns the loss of each pair, shape ``[pairs]``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogps:
    """Summed log-probs of a batch of pairs, each of shape ``[pairs]``, in nats."""

    policy_chosen_logps: torch.Tensor
    policy_rejected_logps: torch.Tensor
    reference_chosen_logps: torch.Tensor
    reference_rejected_logps: torch.Tensor

    def margins(self) -> torch.Tensor:
        """gamma_policy - gamma_reference, shape ``[pairs]``."""
        return (self.policy_chosen_logps - self.policy_rejected_logps) - (
            self.reference_chosen_logps - self.reference_rejected_logps
        )


def dpo(logps: PairLogps, *, beta: float) -> torch.Tensor:
    """-log sigmoid(beta * (gamma_policy - gamma_reference)): DPO, arXiv 2305.18290, eq. 7."""
    return -F.logsigmoid(beta * logps.margins())


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss and what it needs."""

    loss: Callable[..., torch.Tensor]
    needs_reference: bool
    loss_at_reference: float
    """Its value where policy and reference agree, if that is one number: the gate records it."""


OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(dpo, needs_reference=True, loss_at_reference=0.6931471805599453),
}
