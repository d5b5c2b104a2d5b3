"""Settle the token budget of a training before its first micro-batch, and keep it.

On a CPU the settings say it. On a GPU nobody can: it is tried on the longest items, forward and
backward, beside the gradients of a micro-batch before it and with room for the optimizer's states,
and what fits on every rank is published.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from torch.distributed.tensor import DTensor

from sdpo.config.automatic import GPU_MICRO_BATCH_TOKENS
from sdpo.events import EventWriter
from sdpo.model.layouts import LAYOUTS
from sdpo.model.patches import global_batch_ends
from sdpo.model.randomness import Generators
from sdpo.model.shares import is_divided
from sdpo.stages.ranks import fault_of_any
from sdpo.store.budget import Budget, probe, read_budget, write_budget
from sdpo.system.out_of_memory import is_out_of_memory
from sdpo.training.tasks import Task
from sdpo.training.trainer import Trainer

_SHARE = 0.85
"""The trial may take this share of a device's memory: fragments and workspaces need the rest."""


def settle_budget(
    trainer: Trainer,
    task: Task,
    *,
    folder: Path,
    key: str,
    given: Budget | None,
    events: EventWriter,
) -> None:
    """Give ``trainer`` the budget that was settled for this training, or settle it.

    ``folder`` is the step's, ``key`` the digest of its identity, ``given`` the budget of the run
    that this one replays.

    Raises:
        LowMemoryError: a rank was out of memory in a trial in which ranks that share weights wait
            for each other: a smaller budget is kept, with which a new stage has to go on.
        Fault: one item alone does not fit there.
    """
    is_main = trainer.accelerator.is_main_process
    budget = read_budget(folder, key=key) or given
    trainer.accelerator.wait_for_everyone()  # all have read before one writes

    def on_lowered(lowered: Budget) -> None:
        write_budget(folder, lowered, key=key)
        last = lowered.reductions[-1]
        events.warning(
            f"{folder.name} ran out of memory at optimizer step {last.step + 1}: from there on its "
            f"micro-batches have {last.micro_batch_tokens} tokens"
        )

    trainer.progress.on_lowered = on_lowered
    if budget is None and _is_open(trainer):
        tokens = _probed(trainer, task)
        budget = Budget(micro_batch_tokens=tokens)
        events.note(f"{folder.name}: micro-batches of {tokens} tokens fit")
    if budget is not None:
        trainer.progress.budget = budget
        if is_main:
            write_budget(folder, budget, key=key)


def _is_open(trainer: Trainer) -> bool:
    """Return whether nobody has said the budget, and it can be tried."""
    is_on_gpu = trainer.accelerator.device.type == "cuda"
    return is_on_gpu and not trainer.training.micro_batch_tokens


def _probed(trainer: Trainer, task: Task) -> int:
    trial = _Trial(trainer=trainer, task=task)
    most = int(trial.costs[trial.order[: trainer.training.batch_size]].sum())
    generators = Generators(trainer.accelerator.device)
    trainer.scorer.train()
    # DeepSpeed's engine takes a trial for the beginning of the first global batch: one of zeros.
    global_batch_ends(trainer.accelerator, ends=False)
    try:
        return probe(trial.fits, start=GPU_MICRO_BATCH_TOKENS, most=most)
    finally:
        global_batch_ends(trainer.accelerator, ends=True)
        trainer.optimizer.zero_grad(set_to_none=True)
        clear_device_cache(garbage_collection=True)
        generators.restore()


@dataclass(slots=True, kw_only=True)
class _Trial:
    """A trial asks what fits on every rank, with the same answer on all of them.

    Where each rank has whole weights it tries for itself, past the wrapper that would make it wait
    for the others: one that is out of memory tells them afterwards. Ranks that share weights or
    gradients wait for each other within a micro-batch, so that one which is out of memory there
    ends the stage: beyond the default they try only what the last trial lets expect to fit.
    """

    trainer: Trainer
    task: Task
    costs: np.ndarray = field(init=False)
    order: np.ndarray = field(init=False)
    _last: "tuple[_Taken, int] | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.costs = self.trainer.costs(self.task)
        self.order = np.argsort(-self.costs, kind="stable")

    def fits(self, tokens: int) -> bool:
        """Return whether the micro-batch of ``tokens`` that takes most fits on every rank."""
        items = heaviest(self.order, self.costs, tokens, self.trainer.layout)
        if is_divided(self.trainer.scorer) or _by_engine(self.trainer):
            return self._fits_in_step(tokens, items)
        whole = self.trainer.accelerator.unwrap_model(self.trainer.scorer)
        alone = replace(self.trainer, scorer=whole)
        return self._all(fits(alone, self.task, items))

    def _fits_in_step(self, tokens: int, items: np.ndarray) -> bool:
        trainer, costs = self.trainer, self.costs[items]
        padded = LAYOUTS[trainer.layout].padded
        cost = int(costs.max() * len(items) if padded else costs.sum())
        if self._last and not self._all(self._last[0].expected(cost / self._last[1])):
            return False
        # Where memory is short, it is this budget that is lowered for the next stage.
        trainer.progress.budget = Budget(micro_batch_tokens=tokens)
        step = trainer.progress.step
        taken = trainer.in_memory(lambda: _taken(trainer, self.task, items), costs, step=step)
        self._last = taken, cost
        return self._all(taken.expected(1.0))

    def _all(self, own: bool) -> bool:
        return not fault_of_any(self.trainer.accelerator, "" if own else "no room")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """A micro-batch took so many bytes: ``held`` before it, ``peak`` with it, of a ``room``."""

    held: int
    peak: int
    room: float

    def expected(self, times: float) -> bool:
        """Return whether so many ``times`` the micro-batch's tokens fit.

        What does not grow with tokens is counted as if it did, on the safe side.
        """
        return self.held + (self.peak - self.held) * times <= self.room


def heaviest(order: np.ndarray, costs: np.ndarray, tokens: int, layout: str) -> np.ndarray:
    """Return the micro-batch of ``tokens`` that takes most: items in ``order``, by falling cost."""
    if LAYOUTS[layout].padded:
        total = costs[order[0]] * np.arange(1, len(order) + 1)
    else:
        total = np.cumsum(costs[order])
    return order[: max(1, int(np.searchsorted(total, tokens, side="right")))]


def fits(trainer: Trainer, task: Task, items: np.ndarray) -> bool:
    """Return whether ``items`` fit into the device's memory in one micro-batch of a training.

    It need not be the first micro-batch of its global batch.
    """
    try:
        return _taken(trainer, task, items).expected(1.0)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False


def _taken(trainer: Trainer, task: Task, items: np.ndarray) -> _Taken:
    """Compute ``items`` forward and backward, and return what memory that took.

    Raises:
        RuntimeError: memory was short.
    """
    device = trainer.accelerator.device
    clear_device_cache(garbage_collection=True)
    torch.cuda.reset_peak_memory_stats(device)
    free, _ = torch.cuda.mem_get_info(device)
    room = _SHARE * (free + torch.cuda.memory_reserved(device))
    if not _by_engine(trainer):  # which keeps gradients elsewhere: they count as if they grew
        _hold_gradients(trainer)
    held = torch.cuda.memory_allocated(device)
    losses = task.losses(trainer.logps(task, items), items)
    trainer.accelerator.backward(losses.loss.sum() * 0.0)
    peak, to_come = torch.cuda.max_memory_allocated(device), _states_to_come(trainer)
    return _Taken(held=held + to_come, peak=peak + to_come, room=room)


def _by_engine(trainer: Trainer) -> bool:
    return bool(trainer.accelerator.distributed_type == DistributedType.DEEPSPEED)


def _trained(trainer: Trainer) -> list[torch.nn.Parameter]:
    return [p for group in trainer.optimizer.param_groups for p in group["params"]]


def _hold_gradients(trainer: Trainer) -> None:
    """Give every parameter that trains a gradient, as the first micro-batch of a batch leaves it.

    Otherwise the first trial would have more room, the more of the weights train.
    """
    for parameter in _trained(trainer):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _states_to_come(trainer: Trainer) -> int:
    """Return the bytes that the optimizer allocates on this rank's device at its first step."""
    if _by_engine(trainer) or trainer.optimizer.state:  # DeepSpeed makes them as it starts
        return 0
    moments = 2 if trainer.training.optimizer == "adamw" else 1
    kind = trainer.accelerator.device.type  # weights that are offloaded have their states beside
    own = (p.to_local() if isinstance(p, DTensor) else p for p in _trained(trainer))
    return sum(moments * p.numel() * p.element_size() for p in own if p.device.type == kind)
