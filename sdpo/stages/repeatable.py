"""Train on a GPU so that the same training gives the same bits when it is done again.

What adds in no fixed order there are the backward passes of torch's attention, which padded rows
use, and of flash-attn. Both can be given an order: the former while a training lasts, here, the
latter by an environment variable, which the supervisor sets. FlexAttention, for rows of several
sequences, has an order, and so has everything on a CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import DistributedType

from sdpo.events import EventWriter
from sdpo.model.randomness import Generators
from sdpo.model.shares import is_divided
from sdpo.stages.ranks import fault_of_any
from sdpo.system.out_of_memory import first_line
from sdpo.training.tasks import Task
from sdpo.training.trainer import Trainer

_TRIED = 4


def needs_an_order(*, device: str, attention: str, layout: str) -> bool:
    """Return whether attention's sums have a fixed order only where torch is asked for it.

    ``attention`` is ``model.attention``.
    """
    return device == "cuda" and attention == "sdpa" and layout == "padded"


@contextmanager
def repeatable(
    trainer: Trainer, task: Task, events: EventWriter, *, attention: str
) -> Iterator[None]:
    """Train with kernels whose sums have a fixed order while this lasts, if the model allows it.

    Torch refuses operations that have none: a model with such an operation is trained without the
    order, and a warning says so. A sharded model's sums are left as they are.
    """
    accelerator = trainer.accelerator
    sharded = accelerator.distributed_type == DistributedType.DEEPSPEED
    sharded = sharded or is_divided(trainer.scorer)
    device = accelerator.device.type
    if sharded or not needs_an_order(device=device, attention=attention, layout=trainer.layout):
        yield
        return
    with in_order():
        fault = fault_of_any(accelerator, _refused(trainer, task))
        if not fault:
            yield
            return
    events.warning(
        f"the model has an operation that adds in no fixed order on this device ({fault}): a "
        "replay of this step may differ from it in the last bits"
    )
    yield


@contextmanager
def in_order() -> Iterator[None]:
    """Make torch use kernels with a fixed order in the block, and refuse operations without one."""
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)


def _refused(trainer: Trainer, task: Task) -> str:
    """Return what torch refuses of a pass over the shortest items; empty: nothing.

    The pass is forward and backward; generators are restored and gradients freed.
    """
    items = np.argsort(trainer.costs(task), kind="stable")[:_TRIED]
    generators = Generators(trainer.accelerator.device)
    trainer.scorer.train()
    try:
        with trainer.accelerator.no_sync(trainer.scorer):
            losses = task.losses(trainer.logps(task, items), items)
            trainer.accelerator.backward(losses.loss.sum())
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        return first_line(error)
    finally:
        trainer.optimizer.zero_grad(set_to_none=True)
        generators.restore()
    return ""
