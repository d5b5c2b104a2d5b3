"""Go on with part 5: run a real stage of the 1B shape, and TRL with the same settings and rows."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.gpu import workloads
from benchmarks.gpu.findings import Finding, Settings
from benchmarks.ours import Measurement, launch_config, run_step, training_config
from benchmarks.rivals import Way, has_trl, run_trl
from benchmarks.workload import Workload

_PER_DEVICE = 4


def run(settings: Settings) -> Iterator[Finding]:
    """Score and train on both sides; see the module."""
    workload = workloads.ready(settings, "large")
    folder = settings.path / "peer"
    training = training_config(workload, precision="bf16")
    launch = launch_config(device=settings.device, threads=settings.threads)
    ours = run_step(workload, folder / "ours", training, launch)
    step_s = _steps_s(
        folder / "ours" / "run" / "logs" / "step-1.events.jsonl",
        otherwise=ours.seconds["train"] / len(ours.losses),
    )
    yield _told(f"a stage of {workload.settings.model}", workload, ours, step_s)
    if not has_trl():
        yield Finding(what="TRL", seen="not measured: it is not installed here")
        return
    way = Way(per_device=_PER_DEVICE)
    theirs = run_trl(workload, folder / "trl", training, way=way, threads=settings.threads)
    [result] = json.loads((folder / "trl" / "results.json").read_text(encoding="utf-8"))
    ends: list[float] = result["step_ends"]
    their_s = [after - before for before, after in pairwise(ends)] or [theirs.train_s]
    yield _told(theirs.name, workload, theirs, their_s)
    apart = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    memory = theirs.usage.device_allocated_bytes / (ours.usage.device_allocated_bytes or 1)
    steady = median(their_s) / median(step_s)
    yield Finding(
        what="TRL over this project",
        seen=f"an optimizer step {steady:.2f}x, scoring {theirs.score_s / ours.score_s:.2f}x, "
        f"scoring and training {theirs.total_s / ours.total_s:.2f}x, device memory {memory:.2f}x; "
        f"the loss differs by {apart:.1e} at most",
        ok=apart < 0.02,
        numbers={
            "step_ratio": steady,
            "score_ratio": theirs.score_s / ours.score_s,
            "total_ratio": theirs.total_s / ours.total_s,
            "memory_ratio": memory,
            "loss_difference": apart,
        },
    )


def _told(what: str, workload: Workload, side: Measurement, step_s: list[float]) -> Finding:
    tokens = workload.sequence_tokens
    per_step = tokens * workload.settings.batch_size / workload.settings.pairs
    phases = ", ".join(f"{name} {value:.1f}" for name, value in side.seconds.items())
    return Finding(
        what=what,
        seen=f"{per_step / median(step_s):,.0f} tokens/s in an optimizer step of "
        f"{median(step_s):.2f} s, scoring {tokens / side.score_s:,.0f} tokens/s, "
        f"{side.usage.device_allocated_bytes / 1e9:.1f} GB of the device; seconds: {phases}",
        numbers={
            "step_s": step_s,
            "losses": side.losses,
            "device_allocated_bytes": side.usage.device_allocated_bytes,
            **{f"{name}_s": value for name, value in side.seconds.items()},
        },
    )


def _steps_s(events: Path, *, otherwise: float) -> list[float]:
    """Return the seconds of optimizer steps, from one progress event to the next.

    So what comes before the first one, as compiling does, is left out; ``otherwise``: the seconds
    where there are no two events.
    """
    lines = map(json.loads, events.read_text(encoding="utf-8").splitlines())
    ends = [e for e in lines if e["event"] == "progress" and e["phase"] == "train"]
    return [
        (after["time"] - before["time"]) / (after["done"] - before["done"])
        for before, after in pairwise(ends)
    ] or [otherwise]
