"""Run part 3: a real stage in bf16, from load to publication; then its replay and its resume.

All three have the same budget. Whether M_1 is the same bit for bit depends on the GPU: the
difference is measured, in weights and in the loss.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.gpu import workloads
from benchmarks.gpu.findings import Finding, Settings
from benchmarks.ours import launch_config, read_losses, step_spec, training_config
from benchmarks.workload import Workload
from sdpo.config import LaunchConfig, TrainingConfig
from sdpo.errors import Interrupted
from sdpo.events import Event, StateEvent
from sdpo.processes.stage_results import StepResult
from sdpo.processes.stage_specs import StepSpec
from sdpo.processes.supervisor import run_stage
from sdpo.store.budget import Budget

_APART = 1e-3
"""Losses may differ by so much where bits differ."""


def run(settings: Settings) -> Iterator[Finding]:
    """Run, replay and resume; see the module."""
    workload = workloads.ready(settings, "stage")
    folder = settings.path / "stage"
    training = training_config(workload, precision="bf16")
    launch = launch_config(device=settings.device, threads=settings.threads)
    first = _spec(workload, folder / "first", training, launch)
    result, events = _listened(first)
    yield _told(first, result, events)
    budget = Budget.model_validate(_record(first).get("budget", {}))
    again = _spec(workload, folder / "again", training, launch, budget=budget)
    saving = training.model_copy(update={"checkpoint_every": 2})
    stopped = _spec(workload, folder / "stopped", saving, launch, budget=budget)
    with ThreadPoolExecutor(2) as side_by_side:
        replayed = side_by_side.submit(_listened, again)
        halfway = side_by_side.submit(_stop_after_a_save, stopped)
        replay, _ = replayed.result()
        at = halfway.result()
    yield _compared("a replay with the same budget", first, again, result, replay)
    resumed, events = _listened(stopped)
    ways = [event["optimizer_step"] for event in events if event["event"] == "resume"]
    yield Finding(
        what="stopped after a save, then resumed",
        seen=f"stopped after optimizer step {at}, went on from {ways}",
        ok=ways == [at],
    )
    yield _compared("the resumed step", first, stopped, result, resumed)


def _spec(
    workload: Workload,
    folder: Path,
    training: TrainingConfig,
    launch: LaunchConfig,
    budget: Budget | None = None,
) -> StepSpec:
    return step_spec(
        workload,
        folder,
        training,
        launch,
        cache=folder / "cache",
        phases=("reference", "preference"),
        inputs=dict.fromkeys(("reference", "target"), workload.facts["digest"]),
        budget=budget,
    )


def _listened(spec: StepSpec) -> tuple[StepResult, list[Event]]:
    events: list[Event] = []
    return run_stage(spec, listen=events.append).read(StepResult), events


def _stop_after_a_save(spec: StepSpec) -> int:
    """Ask the stage to stop once it has saved a state; return the optimizer step of the last."""
    saved: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, StateEvent) and event.event == "checkpoint":
            saved.append(event.optimizer_step)
            if len(saved) == 1:
                raise Interrupted("enough")

    with suppress(Interrupted):
        run_stage(spec, listen=listen)
    return saved[-1]


def _record(spec: StepSpec) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((spec.folder / "record.json").read_text("utf-8"))
    facts: dict[str, Any] = record.get("facts", record)
    return facts


def _told(spec: StepSpec, result: StepResult, events: list[Event]) -> Finding:
    facts, warnings = _record(spec), [e["message"] for e in events if e["event"] == "warning"]
    notes = [e["message"] for e in events if e["event"] == "note"]
    gate = facts["gate"]
    losses = read_losses(spec.folder / "metrics.jsonl")
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in result.timings_s.items())
    said = " ".join(f"Warning: {message}." for message in warnings)
    return Finding(
        what="a stage from load to publication",
        seen=f"loss {losses[0]:.5f} to {losses[-1]:.5f} in {len(losses)} optimizer steps; the gate "
        f"saw {gate['max_abs_difference_nats']:.4f} of {gate['tolerance_nats']:.3f} nats; seconds: "
        f"{seconds}. {' '.join(notes)} {said}".strip(),
        ok=not warnings and abs(losses[0] - 0.693147) < 0.02,
        numbers={"losses": losses, "gate_nats": gate["max_abs_difference_nats"]}
        | {f"{name}_s": value for name, value in result.timings_s.items()},
    )


def _compared(
    what: str, first: StepSpec, second: StepSpec, one: StepResult, two: StepResult
) -> Finding:
    same = one.model == two.model
    curves = [read_losses(spec.folder / "metrics.jsonl") for spec in (first, second)]
    apart = max(abs(a - b) for a, b in zip(*curves, strict=True))
    weights = (
        0.0 if same else _largest_difference(*(spec.folder / "model" for spec in (first, second)))
    )
    return Finding(
        what=what,
        seen="bit for bit the same M_1"
        if same
        else f"weights differ by {weights:.1e} at most, the loss by {apart:.1e}",
        ok=same or apart < _APART,
        numbers={"bitwise": same, "largest_weight_difference": weights, "loss_difference": apart},
    )


def _largest_difference(one: Path, two: Path) -> float:
    worst = 0.0
    for path in sorted(one.glob("*.safetensors")):
        ours, theirs = load_file(path), load_file(two / path.name)
        for name, tensor in ours.items():
            worst = max(worst, float((tensor.double() - theirs[name].double()).abs().max()))
    return worst
