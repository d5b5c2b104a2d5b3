"""Settle the token budget of a training before its first micro-batch, and keep it.

On a CPU the settings say it. On a GPU nobody can: it is tried on the longest items, forward and
backward, beside the gradients of a micro-batch before it and with room for the optimizer's states,
and what fits is published.
"""

from pathlib import Path

import numpy as np
import torch
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache

from sdpo.config.automatic import GPU_MICRO_BATCH_TOKENS
from sdpo.events import EventWriter
from sdpo.model.layouts import LAYOUTS
from sdpo.model.randomness import Generators
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
    """
    is_main = trainer.accelerator.is_main_process
    budget = read_budget(folder, key=key) or given
    trainer.accelerator.wait_for_everyone()  # all have read before one writes
    if budget is None and _is_open(trainer):
        tokens = _probed(trainer, task)
        budget = Budget(micro_batch_tokens=tokens)
        events.note(f"{folder.name}: micro-batches of {tokens} tokens fit")

    def on_lowered(lowered: Budget) -> None:
        write_budget(folder, lowered, key=key)
        last = lowered.reductions[-1]
        events.warning(
            f"{folder.name} ran out of memory at optimizer step {last.step + 1}: from there on its "
            f"micro-batches have {last.micro_batch_tokens} tokens"
        )

    trainer.progress.on_lowered = on_lowered
    if budget is not None:
        trainer.progress.budget = budget
        if is_main:
            write_budget(folder, budget, key=key)


def _is_open(trainer: Trainer) -> bool:
    """Return whether nobody has said the budget, and it can be tried.

    Several processes would wait for each other in a trial that fails on one of them: they take the
    default.
    """
    accelerator = trainer.accelerator
    return (
        accelerator.device.type == "cuda"
        and accelerator.distributed_type == DistributedType.NO
        and not trainer.training.micro_batch_tokens
    )


def _probed(trainer: Trainer, task: Task) -> int:
    costs = trainer.costs(task)
    order = np.argsort(-costs, kind="stable")
    most = int(costs[order[: trainer.training.batch_size]].sum())
    generators = Generators(trainer.accelerator.device)
    trainer.scorer.train()
    try:
        return probe(
            lambda tokens: fits(trainer, task, heaviest(order, costs, tokens, trainer.layout)),
            start=GPU_MICRO_BATCH_TOKENS,
            most=most,
        )
    finally:
        trainer.optimizer.zero_grad(set_to_none=True)
        clear_device_cache(garbage_collection=True)
        generators.restore()


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
    device = trainer.accelerator.device
    clear_device_cache(garbage_collection=True)
    torch.cuda.reset_peak_memory_stats(device)
    free, _ = torch.cuda.mem_get_info(device)
    room = _SHARE * (free + torch.cuda.memory_reserved(device))
    try:
        _hold_gradients(trainer)
        losses = task.losses(trainer.logps(task, items), items)
        trainer.accelerator.backward(losses.loss.sum() * 0.0)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return torch.cuda.max_memory_allocated(device) + _states_to_come(trainer) <= room


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
    """Return the bytes that the optimizer allocates at its first step."""
    if trainer.optimizer.state:
        return 0
    moments = 2 if trainer.training.optimizer == "adamw" else 1
    return sum(moments * p.numel() * p.element_size() for p in _trained(trainer))
