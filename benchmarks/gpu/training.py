"""Run part 5: see how fast a training is by itself, uncompiled, and where its time goes."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.gpu import models
from benchmarks.gpu.findings import Finding, Settings
from benchmarks.gpu.head import head
from benchmarks.gpu.inmemory import Training, prepare, reference_logps
from benchmarks.matmul import rates
from benchmarks.shapes import SHAPES

_ROWS = 12


def matmul_rate(settings: Settings) -> float:
    """Return the FLOP/s of matrix products: in bf16 on a GPU, in fp32 on a CPU."""
    dtype = "float32" if settings.device == "cpu" else "bfloat16"
    return rates(settings.device, dtype, seconds=0.2).wall


def run(settings: Settings) -> Iterator[Finding]:
    """Time scoring and optimizer steps of the 1B shape; see the module."""
    rate = matmul_rate(settings)
    yield Finding(
        what="matrix products",
        seen=f"{rate / 1e12:,.2f} TFLOP/s",
        numbers={"matmul_flops_per_s": rate},
    )
    name, pairs = ("tiny", 16) if settings.tiny else ("1B", 256)
    lengths = "short" if settings.tiny else "ultrafeedback-long"
    models.reset_peak(settings.device)
    training = prepare(
        settings, SHAPES[name], lengths=lengths, pairs=pairs, batch_size=4 if settings.tiny else 32
    )
    yield _scoring(training, rate)
    training.train()
    yield told(training, f"training alone, {name}, full", rate, operations=3.0)
    yield from _profile(training)
    yield from head(settings, rate)
    yield _waits(training)


def told(training: Training, what: str, rate: float, *, operations: float) -> Finding:
    """Return a finding: tokens a second, share of the matrix products' rate, and memory.

    ``operations``: those of an optimizer step, as a multiple of a forward's; ``rate``: FLOP/s.
    """
    seconds = training.steady_s
    tokens = training.per_step(training.tokens) / seconds
    flops = operations * training.per_step(training.flops) / seconds
    peak = models.peak_bytes(training.settings.device)
    micro = training.trainer.budget(training.trainer.progress.step)
    return Finding(
        what=what,
        seen=f"{tokens:,.0f} tokens/s (prompts once), {flops / rate:.1%} of the matrix products' "
        f"rate, {peak / 1e9:.1f} GB of the device at most, micro-batches of {micro:,} tokens, "
        f"{seconds:.3f} s an optimizer step; loss {training.losses[0]:.4f} to "
        f"{training.losses[-1]:.4f}",
        ok=bool(np.isfinite(training.losses).all() and abs(training.losses[0] - 0.6931) < 0.02),
        numbers={
            "tokens_per_s": tokens,
            "mfu": flops / rate,
            "peak_bytes": peak,
            "micro_batch_tokens": micro,
            "step_s": training.step_s,
            "losses": training.losses,
        },
    )


def _scoring(training: Training, rate: float) -> Finding:
    device = training.settings.device
    reference_logps(training.trainer, training.task)
    start = models.clock(device)
    reference_logps(training.trainer, training.task)
    seconds = models.clock(device) - start
    return Finding(
        what="scoring alone",
        seen=f"{training.tokens.sum() / seconds:,.0f} tokens/s, "
        f"{training.flops.sum() / seconds / rate:.1%} of the matrix products' rate",
        numbers={
            "tokens_per_s": float(training.tokens.sum() / seconds),
            "mfu": float(training.flops.sum() / seconds / rate),
        },
    )


def _waits(training: Training) -> Finding:
    """Count how often the processor waits for the device in a global batch.

    Where it does between micro-batches, a thread that prepares them would gain something.
    """
    what = "waits for the device in a global batch"
    if training.settings.device == "cpu":
        return Finding(what=what, seen="not measured: needs a GPU")
    trainer, task = training.trainer, training.task
    batch, costs = np.arange(trainer.training.batch_size), trainer.costs(task)
    parts = len(trainer.cut(batch, costs, step=trainer.progress.step))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer._gradients(task, batch, costs, step=trainer.progress.step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    trainer.optimizer.zero_grad(set_to_none=True)
    waits = sum("synchronizing" in str(warning.message) for warning in seen)
    return Finding(
        what=what,
        seen=f"{waits} in {parts} micro-batches",
        numbers={"waits": waits, "micro_batches": parts},
    )


def _profile(training: Training) -> Iterator[Finding]:
    """Yield the kernels of one micro-batch, forward and backward, by their share of its time."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = training.settings.device == "cuda"
    trainer, task = training.trainer, training.task
    batch = np.arange(trainer.training.batch_size)
    items = trainer.cut(batch, trainer.costs(task), step=trainer.progress.step)[0]
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as seen:
        losses = task.losses(trainer.logps(task, items), items)
        trainer.accelerator.backward(losses.loss.sum())
        models.wait(training.settings.device)
    trainer.optimizer.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    kind = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(seen.key_averages(), key=lambda row: -getattr(row, kind))
    total = sum(getattr(row, kind) for row in rows)
    for row in rows[:_ROWS]:
        share = getattr(row, kind) / total
        yield Finding(
            what="kernels of a micro-batch",
            seen=f"{share:6.1%} {row.count:5d}x {row.key[:110]}",
            numbers={"share": float(share)},
        )
