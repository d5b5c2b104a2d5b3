"""The training loop of one stage, on accelerate.

One optimizer step is one global batch, cut into micro-batches by :mod:`sdpo.batching`; the loss is
the weighted mean over the global batch whatever the cut and the number of ranks. The learning rate
is a pure function of the step.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sdpo.batching import global_batch, micro_batch_tokens, micro_batches, optimizer_steps
from sdpo.config import TrainingConfig
from sdpo.errors import DivergedError
from sdpo.layouts import LAYOUTS
from sdpo.tasks import ItemLosses, Task

Metrics = dict[str, float]


def learning_rate(step: int, *, total: int, training: TrainingConfig) -> float:
    """Rate of optimizer step ``step`` (from 0): linear warmup, then the schedule, as in HF."""
    warmup = math.ceil(training.warmup_ratio * total)
    if step < warmup:
        return training.learning_rate * step / warmup
    progress = (step - warmup) / max(1, total - warmup)
    match training.lr_schedule:
        case "linear":
            factor = max(0.0, 1.0 - progress)
        case "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "constant":
            factor = 1.0
    return training.learning_rate * factor


def make_optimizer(model: torch.nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Optimizer over the parameters that train; no weight decay on vectors (biases, norms)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [len(getattr(p, "ds_shape", p.shape)) > 1 for p in trained]  # ZeRO-3 flattens shares
    groups = [
        {
            "params": [p for p, is_matrix in zip(trained, matrices, strict=True) if is_matrix],
            "weight_decay": training.weight_decay,
        },
        {
            "params": [p for p, is_matrix in zip(trained, matrices, strict=True) if not is_matrix],
            "weight_decay": 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if training.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=training.learning_rate, eps=training.adam_epsilon)
    return torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )


@dataclass(slots=True, kw_only=True)
class Progress:
    """How far a training is, beside its tensors: what a resume takes over.

    ``micro_batch_tokens``: the token budget that is in force; 0: as the settings say.
    ``reductions``: ``{"step": optimizer step, "micro_batch_tokens": budget}`` for every time that
    the budget had to be lowered, in order.
    """

    step: int = 0
    micro_batch_tokens: int = 0
    reductions: list[dict[str, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """A model under an accelerator, and the settings it trains with.

    ``scorer`` is the prepared :class:`~sdpo.logps.SequenceScorer`, ``optimizer`` the prepared
    optimizer or None where nothing is trained.
    """

    accelerator: Any
    scorer: Any
    optimizer: Any
    training: TrainingConfig
    pad_token_id: int
    layout: str = "padded"
    progress: Progress = field(default_factory=Progress)

    @property
    def budget(self) -> int:
        """Tokens of a micro-batch."""
        return self.progress.micro_batch_tokens or micro_batch_tokens(
            self.training.micro_batch_tokens, device=self.accelerator.device.type
        )

    def logps(self, task: Task, items: np.ndarray) -> torch.Tensor:
        """Summed log-probs of the items' sequences, fp32 ``[rows * k]``."""
        device = self.accelerator.device
        batch = LAYOUTS[self.layout].collate(
            task.groups(items), pad_token_id=self.pad_token_id, device=device.type
        )
        logps: torch.Tensor = self.scorer(batch.to(device))
        return logps.float().view(len(items), task.rows).T.reshape(-1)

    def _costs(self, task: Task) -> tuple[np.ndarray, int]:
        """Tokens of each item in a forward, and how often: by row where rows are padded."""
        layout = LAYOUTS[self.layout]
        if layout.padded:
            return task.lengths, task.rows
        return layout.tokens(task.prompt_tokens, task.completion_tokens), 1

    def train(self, task: Task, *, on_step: Callable[[int, int, Metrics], None]) -> int:
        """Train on ``task``; ``on_step(step, total, metrics)`` after each optimizer step, from 1.

        It goes on where ``progress`` stands. Returns the number of optimizer steps.

        Raises:
            DivergedError: a loss or the gradient is not finite; no update was made from it.
        """
        costs, rows = self._costs(task)
        items, training = len(costs), self.training
        total = optimizer_steps(
            items,
            batch_size=training.batch_size,
            epochs=training.epochs,
            max_steps=training.max_steps,
        )
        per_epoch = math.ceil(items / training.batch_size)
        self.scorer.train()
        for step in range(self.progress.step, total):
            batch, _ = global_batch(
                step, items=items, batch_size=training.batch_size, seed=training.seed
            )
            rate = learning_rate(step, total=total, training=training)
            metrics = self._optimizer_step(task, batch, costs, rows=rows, rate=rate)
            metrics |= {"learning_rate": rate, "epoch": (step + 1) / per_epoch}
            self.progress.step = step + 1
            on_step(step + 1, total, metrics)
        return total

    def _optimizer_step(
        self, task: Task, batch: np.ndarray, costs: np.ndarray, *, rows: int, rate: float
    ) -> Metrics:
        accelerator = self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        cut = micro_batches(
            batch,
            costs,
            budget=self.budget,
            rows=rows,
            ranks=accelerator.num_processes,
        )[accelerator.process_index]
        weight = float(task.weights(batch).sum())
        scale = accelerator.num_processes / weight  # DDP and ZeRO average over ranks
        sums = _Sums(accelerator)
        for index, items in enumerate(cut):
            last = index == len(cut) - 1
            # DeepSpeed learns from this flag, and from nothing else, where a global batch ends.
            accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else accelerator.no_sync(self.scorer):
                losses = self._forward(task, items, fallback=batch)
                sums.add(losses, items)
                if last:
                    metrics = sums.means(weight=weight)
                    self._check_finite(metrics, task, batch)
                accelerator.backward(losses.loss.sum() * scale)
        norm = self._clip()
        if not math.isfinite(norm):
            self._diverged(f"the gradient norm is {norm}", task, batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return metrics | {"grad_norm": norm}

    def _forward(self, task: Task, items: np.ndarray, *, fallback: np.ndarray) -> ItemLosses:
        """Losses of a micro-batch; an empty one still runs a forward, as sharded models need."""
        if len(items):
            return task.losses(self.logps(task, items), items)
        losses = task.losses(self.logps(task, fallback[-1:]), fallback[-1:])
        return ItemLosses(losses.loss * 0.0, {})

    def _clip(self) -> float:
        limit = self.training.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.scorer.parameters(), limit)
        return 0.0 if norm is None else float(norm)

    def _check_finite(self, metrics: Mapping[str, float], task: Task, batch: np.ndarray) -> None:
        if not math.isfinite(metrics["loss"]):
            self._diverged(f"the loss is {metrics['loss']}", task, batch)

    def _diverged(self, what: str, task: Task, batch: np.ndarray) -> None:
        names = ", ".join(task.ids[i] for i in batch)
        raise DivergedError(
            f"{what}: nothing of this step is published. Look at these pairs, or lower the rate. "
            f"Pairs of the batch: {names}"
        )

    @torch.no_grad()
    def evaluate(self, task: Task) -> Metrics:
        """Mean loss and metrics of all items, every item counted once."""
        costs, rows = self._costs(task)
        everything = np.arange(len(costs))
        cut = micro_batches(
            everything,
            costs,
            budget=self.budget,
            rows=rows,
            ranks=self.accelerator.num_processes,
        )[self.accelerator.process_index]
        sums = _Sums(self.accelerator)
        self.scorer.eval()
        for items in cut:
            sums.add(self._forward(task, items, fallback=everything), items)
        self.scorer.train()
        means = sums.means(weight=float(task.weights(everything).sum()))
        if not math.isfinite(means["loss"]):
            raise DivergedError(
                f"the loss on the reserve is {means['loss']}: nothing of this step is published. "
                "Lower the learning rate"
            )
        return means


class _Sums:
    """Sums of losses and metrics over the micro-batches of this rank, then over all ranks."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self._loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        self._items = 0
        self._metrics: dict[str, torch.Tensor] = {}

    def add(self, losses: ItemLosses, items: np.ndarray) -> None:
        self._loss += losses.loss.detach().double().sum()
        self._items += len(items)
        for name, values in losses.metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + values.double().sum()

    def means(self, *, weight: float) -> Metrics:
        """Loss over the weight, metrics over the items."""
        names = self._names()
        zero = torch.zeros_like(self._loss)
        parts = [self._loss, zero + self._items, *(self._metrics.get(n, zero) for n in names)]
        loss, items, *metrics = self._accelerator.reduce(torch.stack(parts), "sum").tolist()
        means = {name: value / items for name, value in zip(names, metrics, strict=True)}
        return {"loss": loss / weight, **means}

    def _names(self) -> list[str]:
        """Metric names in one order on all ranks: a rank without items has none of its own."""
        if self._accelerator.num_processes == 1:
            return sorted(self._metrics)
        from accelerate.utils import gather_object

        return sorted(set(gather_object(sorted(self._metrics))))
