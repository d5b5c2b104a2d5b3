"""Measure whole processes from the recipe to M_2, and what a run costs beside its work."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq
import yaml

from benchmarks.matmul import measure_rate
from benchmarks.measured import FamilyUsage, run_family
from benchmarks.options import Options
from benchmarks.ours import read_losses
from benchmarks.report import MB, table
from benchmarks.rivals import Way, environment, trl_spec
from benchmarks.workload import Workload, first_epoch, write_lines
from sdpo.store.run_folder import RunFolder

WORK = {"score", "train", "measure"}
"""These phases of a stage are its work, and no orchestration."""

_ONE_PAIR = 1e-6
"""A share of the pairs that is rounded up to one of each source."""

QUIET = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


ALL = "sdpo run, all pairs measured"
LITTLE = "sdpo run, 4 pairs measured"
"""Every model is measured on up to 512 pairs of each of the two steps, as by default, or on one of
each; on the two reserved pairs besides."""


def chain(options: Options, *, way: Way) -> dict[str, Any]:
    """Make two steps in a row: by ``sdpo run``, and by a plain script of two DPOTrainers.

    ``sdpo run`` is there twice: measuring every model on all pairs, and on four, which is next to
    what TRL does and so runs beside it.
    """
    options = options.below("chain")
    # One more of each step's pairs is set aside by ``sdpo run``, which wants one to measure on.
    workload = options.workload(steps=2, pairs=options.pairs + 1)
    found: dict[str, list[FamilyUsage]] = {}
    ours: list[float] = []
    theirs: list[float] = []
    rates = [_rate(options)]

    def add(name: str, usage: FamilyUsage) -> None:
        found.setdefault(name, []).append(usage)
        rates.append(_rate(options))
        said = f"{name}: {usage.wall_s:.1f} s, CPU {usage.cpu_s:.1f} s"
        print(f"  {said}, then {rates[-1] / 1e9:.0f} GFLOP/s", file=sys.stderr, flush=True)

    for turn in range(options.repeat):
        folder = options.folder / f"little-{turn}"
        add(LITTLE, run_recipe(_recipe(options, workload, folder, probes=1), folder))
        run = RunFolder(folder / "runs" / "bench")
        if not ours:
            ours = [loss for k in (1, 2) for loss in read_losses(run.step(k) / "metrics.jsonl")]
        if options.sizes:
            rows = _trained(run, workload, options.folder)
            usage, theirs = _trl(options, workload, rows=rows, way=way, turn=turn)
            add(way.name, usage)
        folder = options.folder / f"all-{turn}"
        add(ALL, run_recipe(_recipe(options, workload, folder, probes=512), folder))
    numbers = _chain_numbers(options, found, ours, theirs, way=way)
    told = ", ".join(f"{rate / 1e9:.0f}" for rate in rates)
    print(f"matrix products before the first program and after each: {told} GFLOP/s")
    return numbers | {"chain_matmul_flops_per_s": rates}


def _rate(options: Options) -> float:
    """Return the rate of matrix products now: programs of many minutes may find another machine."""
    return measure_rate(device=options.device, threads=options.threads).wall


def _chain_numbers(
    options: Options,
    found: Mapping[str, list[FamilyUsage]],
    ours: list[float],
    theirs: list[float],
    *,
    way: Way,
) -> dict[str, Any]:
    walls = {name: median(usage.wall_s for usage in runs) for name, runs in found.items()}
    peaks = {name: median(usage.peak_bytes for usage in runs) for name, runs in found.items()}
    cpus = {name: median(usage.cpu_s for usage in runs) for name, runs in found.items()}
    print(f"\n== two steps of {options.pairs} pairs, whole processes from the start to M_2")
    rows = [
        [name, f"{walls[name]:.1f}", f"{cpus[name]:.1f}", f"{peaks[name] / MB:,.0f}"]
        for name in found
    ]
    print(table(["", "s", "CPU s", "peak RSS of all processes, MB"], rows))
    numbers: dict[str, Any] = {
        "chain": {name: [asdict(usage) for usage in runs] for name, runs in found.items()}
    }
    if not theirs:
        return numbers
    name = way.name
    for key, mine in (("chain", ALL), ("chain_not_measuring", LITTLE)):
        numbers[f"{key}_time_ratio"] = walls[name] / walls[mine]
        numbers[f"{key}_memory_ratio"] = peaks[name] / peaks[mine]
        print(
            f"{name} over {mine}: time {numbers[f'{key}_time_ratio']:.2f}x, memory "
            f"{numbers[f'{key}_memory_ratio']:.2f}x"
        )
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    numbers |= {"chain_loss_difference": difference, "chain_optimizer_steps": len(ours)}
    print(
        f"largest difference of the loss over the {len(ours)} optimizer steps of both: "
        f"{difference:.1e}"
    )
    return numbers


def _recipe(
    options: Options, workload: Workload, folder: Path, *, probes: int, **groups: Any
) -> Path:
    """Write the recipe of a natural run over the workload's files, and return its path.

    Its reserve is the least that there is, one pair of each source, and no answers are sampled,
    which TRL does not do either. ``groups``: groups of settings in place of its own.
    """
    folder.mkdir(parents=True)
    steps = range(1, workload.settings.steps + 1)
    training = options.training(workload).model_dump(exclude_defaults=True)
    recipe = {
        "name": "bench",
        "model": {"name_or_path": str(workload.model)},
        "data": {
            "sources": [{"name": f"D_{k}", "path": str(workload.source(k))} for k in steps],
            "reserve": {"fraction": _ONE_PAIR, "min_pairs": 0},
            "max_length": workload.settings.max_length,
        },
        "training": training,
        "probe": {"max_pairs": probes, "completions": 0},
        "launch": {"device": options.device, "threads": options.threads},
        "store": {"runs_dir": str(folder / "runs")},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | groups), encoding="utf-8")
    return path


def run_recipe(recipe: Path, folder: Path) -> FamilyUsage:
    """Call ``sdpo run`` and return what it took, with all that it starts."""
    command = [sys.executable, "-m", "flows.cli.app", "run", str(recipe)]
    return run_family(command, log=folder / "sdpo.log", environment=QUIET)


def _trained(run: RunFolder, workload: Workload, folder: Path) -> list[Path]:
    """Write the pairs that each step of the run trained on, in its order; return the files."""
    plan = pq.read_table(run.plan, columns=["token_row", "step"])
    step_of = list(zip(*(plan[name].to_pylist() for name in ("token_row", "step")), strict=True))
    pairs = pq.read_table(run.pairs, columns=["prompt", "chosen", "rejected"]).to_pylist()
    paths = []
    for step in (1, 2):
        order = first_epoch(step_of, step, seed=workload.settings.seed)
        paths.append(folder / f"trained-{step}.jsonl")
        write_lines(paths[-1], [pairs[row] for row in order])
    return paths


def _trl(
    options: Options, workload: Workload, *, rows: list[Path], way: Way, turn: int
) -> tuple[FamilyUsage, list[float]]:
    folder = options.folder / f"trl-{turn}"
    training = options.training(workload)
    spec = trl_spec(workload, folder, training, rows=rows, way=way)
    spec |= {"save": True}
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    usage = run_family(
        [sys.executable, "-m", "benchmarks.theirs", str(path)],
        log=folder / "log",
        environment=environment(threads=options.threads, cache=folder / "datasets") | QUIET,
    )
    results = json.loads(Path(spec["results"]).read_text(encoding="utf-8"))
    return usage, [loss for result in results for loss in result["losses"]]


def orchestration(options: Options) -> dict[str, Any]:
    """Measure what ``sdpo run`` of a tiny model takes beside scoring, training and measuring."""
    options = options.below("orchestration")
    walls: dict[int, list[float]] = {1: [], 2: []}
    cpus: list[float] = []
    for turn in range(options.repeat):
        for steps, found in walls.items():
            name = f"{steps}-{turn}"
            workload = options.workload(name, model="tiny", lengths="short", pairs=64, steps=steps)
            folder = options.folder / f"run-{name}"
            recipe = _recipe(options, workload, folder, probes=512, data=_defaults(workload))
            usage = run_recipe(recipe, folder)
            found.append(usage.wall_s - _work_s(folder / "runs" / "bench", steps=steps))
            if steps == 1:
                cpus.append(usage.cpu_s)
    one, two = (median(found) for found in walls.values())
    print(
        f"\n== orchestration, tiny model: {one:.1f} s of a run of one step are not scoring, "
        f"training or measuring; a second step adds {two - one:.1f} s; the first run took "
        f"{median(cpus):.1f} s of CPU in all"
    )
    return {
        "orchestration_s": one,
        "orchestration_further_step_s": two - one,
        "orchestration_cpu_s": median(cpus),
    }


def _defaults(workload: Workload) -> dict[str, Any]:
    """Return the settings of the workload's data, with the reserve as it is by default."""
    steps = range(1, workload.settings.steps + 1)
    return {"sources": [{"name": f"D_{k}", "path": str(workload.source(k))} for k in steps]}


def _work_s(run: Path, *, steps: int) -> float:
    total = 0.0
    for step in range(1, steps + 1):
        lines = (run / "logs" / f"step-{step}.events.jsonl").read_text(encoding="utf-8")
        events = [json.loads(line) for line in lines.splitlines()]
        [result] = [event for event in events if event["event"] == "result"]
        total += sum(s for phase, s in result["timings_s"].items() if phase in WORK)
    return total
