"""Compare two executions of one step: are they the same, and if not, where do they part?"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sdpo.errors import IntegrityError, SdpoError
from sdpo.identity.differences import differences
from sdpo.identity.model_digest import tensor_entries
from sdpo.identity.payloads import changes
from sdpo.stats.gamma_rows import GammaRow
from sdpo.store.recorded import check_recorded, read_rows
from sdpo.store.records import StepRecord
from sdpo.store.run_folder import RunFolder

MetricLine = dict[str, float]
"""A line of ``metrics.jsonl``."""
Verdict = Literal["bitwise identical", "same inputs, results differ", "inputs differ", "unknown"]

_OF_THE_CLOCK = re.compile(r"(_s|_per_s|seconds|_bytes|throughput)$")
"""Metrics with these names tell a step's speed or memory; they differ every time."""
_GAMMA = {
    "mean": "mean",
    "ranking_accuracy": "ranking accuracy",
    "accuracy_vs_S": "accuracy_vs_S",
    "accuracy_vs_previous": "accuracy_vs_previous",
}
"""These numbers of a probe are compared; each has its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A comparison gives a verdict; the other fields list in words what differs."""

    verdict: Verdict
    inputs: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()


def compare_step(old: RunFolder, new: RunFolder, step: int) -> Comparison:
    """Compare step ``step`` of two runs: identity, weights, loss curve, gamma, environment."""
    node = f"step-{step}"
    try:
        before = old.find_step(node)
        check_recorded(old, node, old.step(step) / "metrics.jsonl")
        check_recorded(old, f"gamma-{step}", old.step(step) / "gamma.json")
    except IntegrityError as error:
        return Comparison(verdict="unknown", inputs=(str(error),))
    after = new.find_step(node)
    if before is None or after is None:
        missing = old.name if before is None else new.name
        return Comparison(verdict="unknown", inputs=(f"step {step} of {missing} has no record",))
    inputs = tuple(changes(before.identity, after.identity))
    results = tuple(_results(old, new, before, after))
    environment = tuple(differences(before.environment, after.environment))
    verdict: Verdict = "bitwise identical"
    if inputs:
        verdict = "inputs differ"
    elif results:
        verdict = "same inputs, results differ"
    return Comparison(verdict=verdict, inputs=inputs, results=results, environment=environment)


def _results(old: RunFolder, new: RunFolder, before: StepRecord, after: StepRecord) -> list[str]:
    lines: list[str] = []
    step, digests = before.step, [r.model for r in (before, after)]
    if digests[0] != digests[1]:
        lines.append(
            f"weights digest: {digests[0][:16]} -> {digests[1][:16]}"
            f"{_weights(old.model(step), new.model(step))}"
        )
    lines += _curves(*(metrics_of(run.step(step) / "metrics.jsonl") for run in (old, new)))
    lines += _gammas(
        *(read_rows(run.step(step) / "gamma.json", GammaRow) for run in (old, new)), step=step
    )
    return lines


def _weights(old: Path, new: Path) -> str:
    """Return the largest difference of fp32 weights as text, or that the tensors are others."""
    try:
        pairs = list(zip(tensor_entries(old), tensor_entries(new), strict=True))
        if any((a.name, a.dtype, a.shape) != (b.name, b.dtype, b.shape) for a, b in pairs):
            return ", other tensors"
        if any(a.dtype != "F32" for a, _ in pairs):
            return ""
        largest = max(
            float(np.abs(_values(a.file, a.start, a.end) - _values(b.file, b.start, b.end)).max())
            for a, b in pairs
            if a.elements
        )
    except (SdpoError, OSError, ValueError):
        return ""
    return f", by at most {largest:.3g}"


def _values(file: Path, start: int, end: int) -> np.ndarray:
    return np.memmap(file, dtype=np.uint8, mode="r")[start:end].view("<f4")


def metrics_of(path: Path) -> list[MetricLine]:
    """Return the lines of a ``metrics.jsonl`` without the fields that say how fast the step ran."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if not _OF_THE_CLOCK.search(k)} for line in lines]


def _curves(old: list[MetricLine], new: list[MetricLine]) -> list[str]:
    if old == new:
        return []
    if len(old) != len(new):
        return [f"loss curve: {len(old)} lines -> {len(new)} lines"]
    first = next(i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    losses = [
        (a["loss"], b["loss"]) for a, b in zip(old, new, strict=True) if "loss" in a and "loss" in b
    ]
    largest = max((abs(a - b) for a, b in losses), default=0.0)
    a, b = old[first], new[first]
    fields = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    return [
        f"loss curve: from optimizer step {a.get('step', first + 1)} on, the loss by at "
        f"most {largest:.3g} (first in {', '.join(fields[:3])})"
    ]


def _gammas(old: list[GammaRow], new: list[GammaRow], *, step: int) -> list[str]:
    """Return a line per probe on which M_step has other numbers, with their 95% intervals."""
    before, after = (
        {(row.probe, row.whole): row for row in side if row.model == f"M_{step}"}
        for side in (old, new)
    )
    lines = []
    for key in sorted(before.keys() & after.keys()):
        moved = [
            f"{words} {_moved(before[key], after[key], name)}"
            for name, words in _GAMMA.items()
            if getattr(before[key], name) != getattr(after[key], name)
        ]
        if moved:
            lines.append(f"gamma of M_{step} on {key[0]}: {', '.join(moved)}")
    return lines


def _moved(before: GammaRow, after: GammaRow, name: str) -> str:
    """Return two numbers as a person reads them, and their difference, however small it is."""
    old, new = getattr(before, name), getattr(after, name)
    told = " -> ".join(_with_interval(row, name) for row in (before, after))
    return told if old is None or new is None else f"{told} ({new - old:+.2g})"


def _with_interval(row: GammaRow, name: str) -> str:
    value, low, high = (getattr(row, key, None) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return "none"
    return f"{value:.4g}" if low is None else f"{value:.4g} [{low:.3g}, {high:.3g}]"
