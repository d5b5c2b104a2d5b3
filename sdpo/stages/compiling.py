"""``training.compile``: the decoder blocks through torch.compile, with a word about what it gained.

Attention stays what it is: its shapes are those of the segments, other ones in every micro-batch.
The blocks are compiled for the training alone; scoring and probes go through the model's own code,
whose log-probs other runs share.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from sdpo.errors import Interrupted
from sdpo.events import EventWriter
from sdpo.model.batching import global_batch
from sdpo.model.patches import forget_compiled
from sdpo.model.randomness import Generators
from sdpo.model.sequence_scorer import decoder_blocks
from sdpo.training.tasks import Task
from sdpo.training.trainer import Trainer

_RTOL, _LOW_RTOL = 1e-4, 2e-2


@contextmanager
def compiled_blocks(trainer: Trainer, task: Task, events: EventWriter) -> Iterator[dict[str, Any]]:
    """Compile the decoder blocks while this lasts, where the settings ask for it and it works.

    Yields what the step's record says of it: ``{"compiled": ...}`` with the seconds of one
    micro-batch before and after and of compiling, or with the reason why it was left.
    """
    if not trainer.training.compile:
        yield {}
        return
    blocks = decoder_blocks(trainer.accelerator.unwrap_model(trainer.scorer).model)
    items = _first_items(trainer, task)
    before_s, plain = _timed(trainer, task, items)
    found: dict[str, Any] = {"before_s": round(before_s, 4)}
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
        found["left"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    else:
        found |= {"after_s": round(after_s, 4), "compile_s": round(compile_s, 1)}
        if not _same(trainer, plain, compiled):
            found["left"] = f"the loss is {compiled:.6f} instead of {plain:.6f}"
    if "left" in found:
        _restore(blocks)
        events.warning(f"training.compile is left: {found['left']}. The model's own code trains")
    else:
        events.emit(
            "note",
            message=f"compiled {len(blocks)} decoder blocks: a micro-batch takes {after_s:.3f} s "
            f"instead of {before_s:.3f} s ({before_s / after_s:.2f}x), compiling took "
            f"{compile_s:.0f} s",
        )
    try:
        yield {"compiled": found}
    finally:
        _restore(blocks)


def _first_items(trainer: Trainer, task: Task) -> np.ndarray:
    training = trainer.training
    batch, _ = global_batch(
        0, items=len(task.ids), batch_size=training.batch_size, seed=training.seed
    )
    return trainer.cut(batch, trainer.costs(task), step=trainer.progress.step)[0]


def _timed(
    trainer: Trainer, task: Task, items: np.ndarray, *, warm: bool = True
) -> tuple[float, float]:
    """Seconds of a micro-batch forward and backward, and its loss; generators stay as they are."""
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
    """Whether both losses are one, as far as dropout lets them be compared."""
    if trainer.training.lora_dropout:
        return bool(np.isfinite(compiled))
    rtol = _LOW_RTOL if trainer.training.precision == "bf16" else _RTOL
    return bool(np.isclose(plain, compiled, rtol=rtol, atol=rtol))


def _restore(blocks: list[torch.nn.Module]) -> None:
    for block in blocks:
        forget_compiled(block)
