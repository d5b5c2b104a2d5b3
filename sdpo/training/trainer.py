"""Train one stage, on accelerate.

One optimizer step is one global batch, cut into micro-batches by :mod:`sdpo.model.batching`; the
loss is the weighted mean over the global batch whatever the cut and the number of ranks. The
learning rate is a pure function of the step.
"""

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache

from sdpo.config import TrainingConfig
from sdpo.config.automatic import micro_batch_tokens, optimizer_steps
from sdpo.errors import DivergedError, LowMemoryError
from sdpo.model.batching import global_batch, micro_batches
from sdpo.model.lanes import GradientSum, in_lanes
from sdpo.model.layouts import LAYOUTS, Batch
from sdpo.model.patches import global_batch_ends
from sdpo.model.randomness import Generators
from sdpo.model.routers import balance_loss
from sdpo.model.sequence_scorer import SequenceScorer
from sdpo.system.out_of_memory import Parts, first_line, is_out_of_memory
from sdpo.training.optimizer import learning_rate
from sdpo.training.progress import Progress
from sdpo.training.sums import Metrics, Sums
from sdpo.training.tasks import ItemLosses, Task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """A trainer has a model under an accelerator, and the settings it trains with.

    ``scorer`` is the prepared :class:`~sdpo.model.sequence_scorer.SequenceScorer`, ``optimizer``
    the prepared optimizer. More than one lane: see :mod:`sdpo.model.lanes`.
    """

    accelerator: "Accelerator"
    scorer: SequenceScorer
    optimizer: "AcceleratedOptimizer"
    training: TrainingConfig
    pad_token_id: int
    layout: str = "padded"
    lanes: int = 1
    progress: Progress = field(default_factory=Progress)

    def budget(self, step: int) -> int:
        """Return the tokens of a micro-batch at optimizer step ``step`` (from 0)."""
        default = micro_batch_tokens(
            self.training.micro_batch_tokens, device=self.accelerator.device.type
        )
        return self.progress.budget.at(step, default=default)

    def logps(self, task: Task, items: np.ndarray) -> torch.Tensor:
        """Return the summed log-probs of the items' sequences, fp32 ``[rows * k]``."""
        logps: torch.Tensor = self.scorer(self._batch(task, items))
        return _by_side(logps, task)

    def losses(self, task: Task, items: np.ndarray) -> ItemLosses:
        """Return the items' losses, with the routers' load where the task adds their loss."""
        if not task.router_aux_loss:
            return task.losses(self.logps(task, items), items)
        logps, load = self.scorer(self._batch(task, items), routers=True)
        return replace(task.losses(_by_side(logps, task), items), load=load)

    def _batch(self, task: Task, items: np.ndarray) -> Batch:
        device = self.accelerator.device
        batch = LAYOUTS[self.layout].collate(
            task.groups(items), pad_token_id=self.pad_token_id, device=device.type
        )
        return batch.to(device)

    @torch.no_grad()
    def logps_as_trained(self, task: Task, items: np.ndarray) -> np.ndarray:
        """Return log-probs of ``items``, fp32 ``[items, rows]``, computed as in training.

        That is as a global batch of them is trained: in train mode, in micro-batches, in lanes.
        Random generators are left as they were; the model is left in eval mode. Every rank computes
        all items. Under DeepSpeed the mode is not changed, as its engine counts forwards in train
        mode.
        """
        shares = self._shares(
            items,
            self.costs(task),
            step=self.progress.step,
            among=self.lanes * self.accelerator.num_processes,
        )
        batches = [batch for share in shares for batch in share if len(batch)]
        generators = Generators(self.accelerator.device)
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            self.scorer.train()
        parts = self._parts(task, "the gate")

        def computed(batch: np.ndarray) -> list[tuple[np.ndarray, torch.Tensor]]:
            return list(parts.of(batch, lambda part: self.logps(task, part)))

        found: dict[int, np.ndarray] = {}
        for done in in_lanes(computed, batches, lanes=self.lanes):
            for batch, logps in done:
                found |= zip(batch.tolist(), logps.view(task.rows, -1).T.cpu().numpy(), strict=True)
        self.scorer.eval()
        generators.restore()
        return np.stack([found[int(item)] for item in items])

    def _parts(self, task: Task, what: str) -> Parts:
        """Return what computes without gradients, in as few parts as memory holds."""
        costs = self.costs(task)
        return Parts(
            what=what,
            cost=lambda items: float(costs[items].sum()),
            in_step=self.accelerator.num_processes > 1,
        )

    def costs(self, task: Task) -> np.ndarray:
        """Return the tokens of each item alone in a forward, ``[items]``."""
        return LAYOUTS[self.layout].tokens(task.prompt_tokens, task.completion_tokens)

    def cut(self, items: np.ndarray, costs: np.ndarray, *, step: int) -> list[np.ndarray]:
        """Return this rank's micro-batches of ``items``, by the budget of step ``step``."""
        shares = self._shares(items, costs, step=step, among=self.accelerator.num_processes)
        return shares[self.accelerator.process_index]

    def _shares(
        self, items: np.ndarray, costs: np.ndarray, *, step: int, among: int
    ) -> list[list[np.ndarray]]:
        return micro_batches(
            items,
            costs,
            budget=self.budget(step),
            ranks=among,
            padded=LAYOUTS[self.layout].padded,
        )

    def train(self, task: Task, *, on_step: Callable[[int, int, Metrics], None]) -> int:
        """Train on ``task``, with ``on_step(step, total, metrics)`` after each step, from 1.

        It starts at ``progress.step``. Returns the number of optimizer steps.

        Raises:
            DivergedError: a loss or the gradient is not finite; no update was made from it.
        """
        costs, training = self.costs(task), self.training
        items = len(costs)
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
            metrics = self._optimizer_step(task, batch, costs, step=step, rate=rate)
            metrics |= {"learning_rate": rate, "epoch": (step + 1) / per_epoch}
            self.progress.step = step + 1
            on_step(step + 1, total, metrics)
        return total

    def _optimizer_step(
        self, task: Task, batch: np.ndarray, costs: np.ndarray, *, step: int, rate: float
    ) -> Metrics:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        metrics = self.in_memory(
            lambda: self._gradients(task, batch, costs, step=step), costs[batch], step=step
        )
        norm = self._clip()
        if not math.isfinite(norm):
            self._diverged(f"the gradient norm is {norm}", task, batch)
        self._update(step, largest=int(costs[batch].max()))
        self.optimizer.zero_grad(set_to_none=True)
        return metrics | {"grad_norm": norm}

    def _update(self, step: int, *, largest: int) -> None:
        """Take the optimizer's step.

        Its first step makes its states. Where they do not fit beside what micro-batches left, some
        weights may be updated and others not: a new stage has to go on, with smaller ones.

        Raises:
            LowMemoryError: they did not fit; ``on_lowered`` was called with a smaller budget.
            Fault: they did not fit, and a micro-batch already has one item alone.
        """
        try:
            self.optimizer.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fault = first_line(error)
        else:
            return
        self._lower(step, largest=largest, fault=f"the optimizer's states: {fault}", anew=True)

    def in_memory(self, compute: Callable[[], _Result], costs: np.ndarray, *, step: int) -> _Result:
        """Return what ``compute`` returns; where memory does not suffice, in smaller micro-batches.

        ``costs`` are the tokens of each item that it computes, ``[items]``.

        Raises:
            LowMemoryError: there are several processes, and the others wait in a collective now;
                ``on_lowered`` was called, and a new stage has to go on with the smaller budget.
            Fault: one item alone does not fit.
        """
        generators = Generators(self.accelerator.device)
        while True:
            try:
                return compute()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                fault = first_line(error)
            # Here the error is gone, and the tensors that its frames held with it.
            self.optimizer.zero_grad(set_to_none=True)
            self._lower(step, largest=int(costs.max()), fault=fault)
            generators.restore()

    def _lower(self, step: int, *, largest: int, fault: str, anew: bool = False) -> None:
        """Settle on a smaller budget, and tell ``on_lowered`` of it.

        ``anew``: it is for another stage, since this one cannot go on.
        """
        before = self.budget(step)
        tokens = self.progress.lower(
            step, before=before, largest=largest, lanes=self.lanes, fault=fault
        )
        if anew or self.accelerator.distributed_type != DistributedType.NO:
            raise LowMemoryError(
                f"out of memory at optimizer step {step + 1} with micro-batches of {before} "
                f"tokens: it goes on with {tokens} ({fault})"
            )
        clear_device_cache(garbage_collection=True)

    def _gradients(self, task: Task, batch: np.ndarray, costs: np.ndarray, *, step: int) -> Metrics:
        """Add the gradients of a global batch, and return its metrics."""
        if self.lanes > 1:
            return self._gradients_in_lanes(task, batch, costs, step=step)
        accelerator = self.accelerator
        cut = self.cut(batch, costs, step=step)
        weight = float(task.weights(batch).sum())
        scale = accelerator.num_processes / weight  # DDP and ZeRO average over ranks
        whole = self._router_load(task, cut, fallback=batch)
        sums = Sums(accelerator, router_weight=task.router_aux_loss)
        for index, items in enumerate(cut):
            last = index == len(cut) - 1
            global_batch_ends(accelerator, ends=last)
            with nullcontext() if last else accelerator.no_sync(self.scorer):
                losses = self._forward(task, items, fallback=batch)
                sums.add(losses)
                if last:
                    metrics = sums.means(weight=weight)
                    self._check_finite(metrics, task, batch)
                total = losses.loss.sum() * scale
                if losses.load is not None:
                    part = balance_loss(losses.load, whole=whole)
                    total = total + task.router_aux_loss * part * accelerator.num_processes
                accelerator.backward(total)
        return metrics

    @torch.no_grad()
    def _router_load(
        self, task: Task, cut: list[np.ndarray], *, fallback: np.ndarray
    ) -> torch.Tensor | None:
        """Return the routers' load of a whole global batch, of which ``cut`` are this rank's parts.

        Their loss is not a sum over micro-batches, so it takes a forward of all of them before the
        first backward. It is None where the task adds no such loss, or the only micro-batch is the
        whole.
        """
        accelerator = self.accelerator
        if not task.router_aux_loss or len(cut) * accelerator.num_processes == 1:
            return None
        generators = Generators(accelerator.device)  # adapters' dropout is drawn the same again
        sharded = accelerator.distributed_type == DistributedType.DEEPSPEED
        if sharded:  # its engine counts the forwards in train mode
            self.scorer.eval()

        def load(items: np.ndarray) -> torch.Tensor | None:
            return self._forward(task, items, fallback=fallback).load

        found = [part for part in in_lanes(load, cut, lanes=self.lanes) if part is not None]
        if sharded:
            self.scorer.train()
        generators.restore()
        whole: torch.Tensor = accelerator.reduce(torch.stack(found).sum(0), "sum")
        return whole

    def _gradients_in_lanes(
        self, task: Task, batch: np.ndarray, costs: np.ndarray, *, step: int
    ) -> Metrics:
        """Do as :meth:`_gradients`; lanes are to this process what ranks are to a training."""
        weight = float(task.weights(batch).sum())
        trained = [p for p in self.scorer.parameters() if p.requires_grad]
        shares = self._shares(batch, costs, step=step, among=self.lanes)
        busy = [[items for items in share if len(items)] for share in shares]
        whole = self._router_load(
            task, [items for share in busy for items in share], fallback=batch
        )
        ended = threading.Event()

        def lane(share: list[np.ndarray]) -> tuple[GradientSum, list[ItemLosses]]:
            gradients, found = GradientSum(trained), []
            for items in share:
                if ended.is_set():
                    break
                losses = self.losses(task, items)
                total, load = losses.loss.sum() / weight, losses.load
                if load is not None:
                    total = total + task.router_aux_loss * balance_loss(load, whole=whole)
                    load = load.detach()
                gradients.backward(total)
                found.append(ItemLosses(losses.loss.detach(), losses.metrics, load))
            return gradients, found

        sums = Sums(self.accelerator, router_weight=task.router_aux_loss)
        for gradients, found in in_lanes(lane, busy, lanes=self.lanes, ended=ended):
            gradients.hand_over()
            for losses in found:
                sums.add(losses)
        metrics = sums.means(weight=weight)
        self._check_finite(metrics, task, batch)
        return metrics

    def _forward(self, task: Task, items: np.ndarray, *, fallback: np.ndarray) -> ItemLosses:
        """Return a micro-batch's losses; an empty one runs a forward too, as sharding needs."""
        if len(items):
            return self.losses(task, items)
        return self.losses(task, fallback[-1:]).of_nothing()

    def _clip(self) -> float:
        limit = self.training.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.scorer.parameters(), limit)
        if norm is not None and hasattr(norm, "full_tensor"):  # every rank has a part of FSDP2's
            norm = norm.full_tensor()
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
        """Return the mean loss and the mean metrics of all items.

        Items count in the loss by their weight. The model is left in train mode.
        """
        costs = self.costs(task)
        everything = np.arange(len(costs))
        cut = self.cut(everything, costs, step=self.progress.step)
        sums = Sums(self.accelerator, router_weight=task.router_aux_loss)
        self.scorer.eval()
        parts = self._parts(task, "the loss on the reserve")

        def computed(items: np.ndarray) -> list[tuple[np.ndarray, ItemLosses]]:
            forward = partial(self._forward, task, fallback=everything)
            return list(parts.of(items, forward))

        found = in_lanes(computed, cut, lanes=self.lanes)
        with closing(found):
            for done in found:
                for _, losses in done:
                    sums.add(losses)
        self.scorer.train()
        means = sums.means(weight=float(task.weights(everything).sum()))
        if not math.isfinite(means["loss"]):
            raise DivergedError(
                f"the loss on the reserve is {means['loss']}: nothing of this step is published. "
                "Lower the learning rate"
            )
        return means


def _by_side(logps: torch.Tensor, task: Task) -> torch.Tensor:
    """Put log-probs that come item by item in a task's order: first sides, then second ones."""
    return logps.float().view(-1, task.rows).T.reshape(-1)
