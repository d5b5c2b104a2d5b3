"""Define what a step trains on: preference pairs with a reference, or completions alone.

A task owns the items of one stage and turns the log-probs of their sequences into a loss per item.
The trainer does not know which task it runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from sdpo.model.layouts import PromptGroup
from sdpo.model.layouts.moving import moved
from sdpo.model.sequence_scorer import TokenSequence
from sdpo.objectives.losses import PairLogps, loss_of, own_metrics, rewards, sft


@dataclass(frozen=True, slots=True)
class ItemLosses:
    """A micro-batch of k items has ``loss`` fp32 ``[k]`` and named metrics ``[k]``, detached.

    ``load`` is the routers' load, where their loss is added: see :mod:`sdpo.model.routers`.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]
    load: torch.Tensor | None = None

    def of_nothing(self) -> "ItemLosses":
        """Return those of no item, with the names by which metrics of all ranks are added up."""
        metrics = {name: values[:0] for name, values in self.metrics.items()}
        return ItemLosses(self.loss[:0], metrics, None if self.load is None else 0 * self.load)


class Task(Protocol):
    """A task is what the trainer trains on: items, numbered from 0."""

    @property
    def rows(self) -> int:
        """Return the number of sequences of one item."""

    @property
    def ids(self) -> Sequence[str]:
        """Return the name of each item, for messages."""

    @property
    def prompt_tokens(self) -> np.ndarray:
        """Return the tokens of each prompt, int ``[items]``."""

    @property
    def completion_tokens(self) -> np.ndarray:
        """Return the tokens of each completion, int ``[items, rows]``."""

    @property
    def router_aux_loss(self) -> float:
        """Return the weight of the routers' loss in that of a global batch; 0: it is not added."""

    def groups(self, items: np.ndarray) -> list[PromptGroup]:
        """Return the prompt and the completions of each item."""

    def sequences(self, items: np.ndarray) -> list[TokenSequence]:
        """Return ``rows * k`` sequences: the first sides of all items, then the second sides."""

    def weights(self, items: np.ndarray) -> np.ndarray:
        """Return what each item counts in the mean loss, float ``[k]``."""

    def losses(self, logps: torch.Tensor, items: np.ndarray) -> ItemLosses:
        """Return an item's loss from its sequences' summed log-probs, ``[rows * k]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceTask:
    """A preference task has pairs with the reference's log-probs, fp32 ``[items, 2]``.

    The columns are chosen and rejected; they are NaN where the objective reads no reference.
    ``settings`` are those that the objective's formula reads; ``rpo_alpha`` is the weight of the
    chosen side's NLL per token beside it (arXiv 2404.19733), ``router_aux_loss`` that of the
    routers' load-balancing loss beside both.
    """

    ids: Sequence[str]
    prompts: Sequence[np.ndarray]
    chosen: Sequence[np.ndarray]
    rejected: Sequence[np.ndarray]
    reference: np.ndarray
    objective: str
    settings: Mapping[str, float]
    rpo_alpha: float = 0.0
    router_aux_loss: float = 0.0
    rows: int = 2

    @property
    def prompt_tokens(self) -> np.ndarray:
        """Return the tokens of each prompt, int ``[items]``."""
        return np.array([len(prompt) for prompt in self.prompts])

    @property
    def completion_tokens(self) -> np.ndarray:
        """Return the tokens of chosen and rejected, int ``[items, 2]``."""
        return np.array([[len(c), len(r)] for c, r in zip(self.chosen, self.rejected, strict=True)])

    def groups(self, items: np.ndarray) -> list[PromptGroup]:
        """Return prompt, chosen and rejected of each item."""
        return [PromptGroup(self.prompts[i], (self.chosen[i], self.rejected[i])) for i in items]

    def sequences(self, items: np.ndarray) -> list[TokenSequence]:
        """Return the chosen sequences of all items, then the rejected ones."""
        return [
            TokenSequence(np.concatenate([self.prompts[i], side[i]]), len(self.prompts[i]))
            for side in (self.chosen, self.rejected)
            for i in items
        ]

    def weights(self, items: np.ndarray) -> np.ndarray:
        """Return ones: every pair counts the same."""
        return np.ones(len(items))

    def losses(self, logps: torch.Tensor, items: np.ndarray) -> ItemLosses:
        """Return the objective's loss of each pair, with the weighted NLL, and TRL's metrics."""
        pairs = self._pair_logps(logps, items)
        loss = loss_of(self.objective)(pairs, **self.settings)
        if self.rpo_alpha:
            loss = loss + self.rpo_alpha * sft(pairs)
        with torch.no_grad():
            chosen_rewards, rejected_rewards = rewards(pairs, self.objective, self.settings)
            metrics = {
                "rewards/chosen": chosen_rewards,
                "rewards/rejected": rejected_rewards,
                "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
                "rewards/margins": chosen_rewards - rejected_rewards,
                "logps/chosen": pairs.policy_chosen_logps,
                "logps/rejected": pairs.policy_rejected_logps,
                **own_metrics(pairs, self.objective, with_nll=self.rpo_alpha > 0),
            }
        return ItemLosses(loss, {name: value.detach() for name, value in metrics.items()})

    def _pair_logps(self, logps: torch.Tensor, items: np.ndarray) -> PairLogps:
        chosen, rejected = logps.view(2, -1)
        reference = moved(torch.from_numpy(self.reference[items]), logps.device)
        tokens = [[len(side[i]) for i in items] for side in (self.chosen, self.rejected)]
        chosen_tokens, rejected_tokens = moved(
            torch.tensor(tokens, dtype=logps.dtype), logps.device
        )
        return PairLogps(
            policy_chosen_logps=chosen,
            policy_rejected_logps=rejected,
            reference_chosen_logps=reference[:, 0],
            reference_rejected_logps=reference[:, 1],
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedTask:
    """A supervised task has completions, trained by their NLL, every token counting the same."""

    ids: Sequence[str]
    prompts: Sequence[np.ndarray]
    completions: Sequence[np.ndarray]
    router_aux_loss: float = 0.0
    rows: int = 1

    @property
    def prompt_tokens(self) -> np.ndarray:
        """Return the tokens of each prompt, int ``[items]``."""
        return np.array([len(prompt) for prompt in self.prompts])

    @property
    def completion_tokens(self) -> np.ndarray:
        """Return the tokens of each completion, int ``[items, 1]``."""
        return np.array([[len(completion)] for completion in self.completions])

    def groups(self, items: np.ndarray) -> list[PromptGroup]:
        """Return the prompt and the completion of each item."""
        return [PromptGroup(self.prompts[i], (self.completions[i],)) for i in items]

    def sequences(self, items: np.ndarray) -> list[TokenSequence]:
        """Return each item as one sequence, of which the completion is scored."""
        return [
            TokenSequence(
                np.concatenate([self.prompts[i], self.completions[i]]), len(self.prompts[i])
            )
            for i in items
        ]

    def weights(self, items: np.ndarray) -> np.ndarray:
        """Return each item's completion tokens, float64 ``[k]``: every token counts the same."""
        return np.array([len(self.completions[i]) for i in items], dtype=np.float64)

    def losses(self, logps: torch.Tensor, items: np.ndarray) -> ItemLosses:
        """Return the negative log-likelihood of each item, in nats."""
        return ItemLosses(-logps, {})
