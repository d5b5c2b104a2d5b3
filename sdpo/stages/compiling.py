"""Compile the decoder blocks for ``training.compile``, and tell what it gained.

Attention is not compiled: its shapes are those of the segments, which differ in every micro-batch.
The blocks are compiled for the training alone; scoring and probes go through the model's own code,
whose log-probs other runs share.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache

from sdpo.errors import Interrupted
from sdpo.events import EventWriter
from sdpo.model.batching import global_batch
from sdpo.model.patches import forget_compiled
from sdpo.model.randomness import Generators
from sdpo.model.sequence_scorer import decoder_blocks
from sdpo.stages.ranks import fault_of_any
from sdpo.store.records import Compiled
from sdpo.system.out_of_memory import first_line
from sdpo.training.tasks import Task
from sdpo.training.trainer import Trainer

_RTOL, _LOW_RTOL = 1e-4, 2e-2


@contextmanager
def compiled_blocks(trainer: Trainer, task: Task, events: EventWriter) -> Iterator[Compiled | None]:
    """Compile the decoder blocks while this lasts, if the settings ask for it and it works.

    Yields what the step's record says of it; None where nothing is compiled.
    """
    if not trainer.training.compile:
        yield None
        return
    blocks = decoder_blocks(trainer.accelerator.unwrap_model(trainer.scorer).model)
    items, before_s, plain = _as_it_is(trainer, task)
    told = Compiled(before_s=round(before_s, 4))
    fault = ""
    try:
        for block in blocks:
            block.compile(dynamic=True)
        compile_s, _ = _timed(trainer, task, items, warm=False)
        after_s, compiled = _timed(trainer, task, items)
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - a compiler fails in as many ways as it has parts
        # Half of a backward pass leaves its gradients, which the first update would add.
        trainer.optimizer.zero_grad(set_to_none=True)
        fault = f"{type(error).__name__}: {first_line(error)}"
    else:
        seconds = {"after_s": round(after_s, 4), "compile_s": round(compile_s, 1)}
        told = told.model_copy(update=seconds)
        if not _same(trainer, plain, compiled):
            fault = f"the loss is {compiled:.6f} instead of {plain:.6f}"
    if fault := fault_of_any(trainer.accelerator, fault):
        told = told.model_copy(update={"left": fault})
        _restore(blocks)
        clear_device_cache(garbage_collection=True)
        events.warning(f"training.compile is left: {fault}. The model's own code trains")
    else:
        events.note(
            f"compiled {len(blocks)} decoder blocks: a micro-batch takes {after_s:.3f} s "
            f"instead of {before_s:.3f} s ({before_s / after_s:.2f}x), compiling took "
            f"{compile_s:.0f} s",
        )
    try:
        yield told
    finally:
        _restore(blocks)


def _as_it_is(trainer: Trainer, task: Task) -> tuple[np.ndarray, float, float]:
    """Return the first micro-batch that memory holds, its seconds and loss, before compiling."""
    training, costs, step = trainer.training, trainer.costs(task), trainer.progress.step
    batch, _ = global_batch(
        0, items=len(task.ids), batch_size=training.batch_size, seed=training.seed
    )

    def measured() -> tuple[np.ndarray, float, float]:
        items = trainer.cut(batch, costs, step=step)[0]
        if not len(items):  # more ranks than pairs
            items = batch[-1:]
        return items, *_timed(trainer, task, items)

    return trainer.in_memory(measured, costs[batch], step=step)


def _timed(
    trainer: Trainer, task: Task, items: np.ndarray, *, warm: bool = True
) -> tuple[float, float]:
    """Return the seconds of a micro-batch forward and backward, and its loss.

    The generators of random numbers are left as they were.
    """
    generators = Generators(trainer.accelerator.device)
    trainer.scorer.train()
    for _ in range(2 if warm else 1):
        generators.restore()
        start = time.perf_counter()
        with trainer.accelerator.no_sync(trainer.scorer):
            losses = task.losses(trainer.logps(task, items), items)
            trainer.accelerator.backward(losses.loss.sum())
        loss = float(losses.loss.detach().sum())  # waits for the device
        seconds = time.perf_counter() - start
        trainer.optimizer.zero_grad(set_to_none=True)
    generators.restore()
    return seconds, loss


def _same(trainer: Trainer, plain: float, compiled: float) -> bool:
    """Return whether both losses are the same, as far as dropout lets them be compared."""
    if trainer.training.lora_dropout:
        return bool(np.isfinite(compiled))
    rtol = _LOW_RTOL if trainer.training.precision == "bf16" else _RTOL
    return bool(np.isclose(plain, compiled, rtol=rtol, atol=rtol))


def _restore(blocks: list[torch.nn.Module]) -> None:
    for block in blocks:
        forget_compiled(block)
