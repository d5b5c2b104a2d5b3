"""Compare both sides: scoring and training one partition, the loss curve, the warm cache."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.matmul import Rate, measure_rate
from benchmarks.measured import OutOfMemoryKill, Usage
from benchmarks.options import Options
from benchmarks.ours import Measurement, run_step, run_tokenise
from benchmarks.report import Side, loss_difference, ratios, side_by_side
from benchmarks.rivals import AS_CONFIGURED, Way, run_trl
from benchmarks.workload import Settings, Workload


def compare(options: Options, lengths: str) -> tuple[Workload, dict[str, Any]]:
    """Run both sides in turn over pairs of ``lengths``; print and return the numbers."""
    workload = options.below(lengths).workload(lengths=lengths)
    print(_title(options, workload))
    runs = _Runs()
    rates: list[Rate] = []
    for turn in range(options.repeat):
        rates.append(measure_rate(device=options.device, threads=options.threads))
        _one_turn(options, workload, runs, turn=turn)
    rate = Rate(max(rate.wall for rate in rates), max(rate.cpu for rate in rates))
    return workload, _numbers(options, workload, runs, rate)


class _Runs:
    """Runs hold the measurements by program; what each took is printed to stderr as it comes.

    ``ways``: those of TRL's programs, by name.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[Measurement]] = {}
        self.ways: dict[str, Way] = {}

    def add(self, measurement: Measurement, way: Way | None = None) -> None:
        self._found.setdefault(measurement.name, []).append(measurement)
        if way is not None:
            self.ways[measurement.name] = way
        parts = [f"{phase} {seconds:.1f} s" for phase, seconds in measurement.seconds.items()]
        peak = f"peak {measurement.usage.peak_bytes / 1e6:,.0f} MB"
        print(f"  {measurement.name}: {', '.join([*parts, peak])}", file=sys.stderr, flush=True)

    @property
    def sides(self) -> list[Side]:
        return [Side(name, runs) for name, runs in self._found.items()]

    @property
    def theirs(self) -> list[Side]:
        return [side for side in self.sides if side.name in self.ways]


def _one_turn(options: Options, workload: Workload, runs: _Runs, *, turn: int) -> None:
    """Run every program once; TRL by its checkpointing too where memory asks for it.

    Its fastest way is run without scoring first as well, and the way that it is configured.
    """
    training, threads = options.training(workload), options.threads
    folder = workload.folder.parent
    prepared = run_tokenise(workload, folder / f"sdpo-tokens-{turn}", threads=threads)
    done = run_step(workload, folder / f"sdpo-{turn}", training, options.launch)
    runs.add(replace(done, seconds=prepared.seconds | done.seconds))
    for size in options.sizes:
        way = Way(per_device=size)
        if not _add_trl(options, workload, runs, way, turn=turn):
            _add_trl(options, workload, runs, replace(way, checkpointing=True), turn=turn)
    if not runs.ways:
        return
    further = [replace(runs.ways[fastest(runs.theirs).name], precompute=False)]
    if AS_CONFIGURED.per_device in options.sizes:
        further.append(AS_CONFIGURED)
    for way in dict.fromkeys(further):
        _add_trl(options, workload, runs, way, turn=turn)


def _add_trl(options: Options, workload: Workload, runs: _Runs, way: Way, *, turn: int) -> bool:
    """Run TRL in this way; return whether it fits. What does not is said and left out."""
    place = workload.folder.parent / f"{way.folder}-{turn}"
    training, threads = options.training(workload), options.threads
    try:
        runs.add(run_trl(workload, place, training, way=way, threads=threads), way)
    except RuntimeError as error:
        if options.device == "cpu" and not isinstance(error, OutOfMemoryKill):
            raise
        said = "does not fit" if isinstance(error, OutOfMemoryKill) else f"failed: {error}"
        print(f"  {way.name} {said}", file=sys.stderr, flush=True)
        return False
    return True


def fastest(sides: Sequence[Side]) -> Side:
    """Return the side with the least time for scoring, if it does that first, and training."""
    return min(sides, key=lambda side: side.seconds("total_s"))


def _title(options: Options, workload: Workload) -> str:
    settings, lengths = workload.settings, workload.facts["lengths"]
    prompt, chosen, rejected = (sum(c) / len(lengths) for c in zip(*lengths, strict=True))
    rank = options.training(workload).lora_r
    adapters = f"LoRA of rank {rank}, " if rank else ""
    rows = Path(settings.rows).name or settings.lengths
    return (
        f"\n== {rows}: {settings.pairs} pairs, on average {prompt:.0f} prompt, "
        f"{chosen:.0f} chosen, {rejected:.0f} rejected tokens\n"
        f"{_model(settings)}, {adapters}{options.training(workload).precision}; "
        f"global batch {settings.batch_size}; {options.device}, {options.threads} threads; "
        f"medians of {options.repeat}"
    )


def _model(settings: Settings) -> str:
    size = f"{settings.shape.parameters / 1e6:,.1f}M"
    return (
        f"{settings.model}, {size} weights"
        if settings.weights
        else f"Llama of {size} random weights"
    )


def _numbers(options: Options, workload: Workload, runs: _Runs, rate: Rate) -> dict[str, Any]:
    """Return what the JSON file holds of a comparison, and print it as a table."""
    sides, theirs = runs.sides, runs.theirs
    ours, flops, pairs = sides[0], workload.flops, workload.settings.pairs
    total = ours.seconds("total_s")
    steps = len(ours.runs[0].losses)
    found: dict[str, Any] = {
        "settings": asdict(workload.settings),
        "parameters": workload.settings.shape.parameters,
        "device": options.device,
        "threads": options.threads,
        "repeat": options.repeat,
        "matmul_flops_per_s": rate.wall,
        "useful_flops": flops,
        "optimizer_steps": steps,
        "peak_share": flops / total / rate.wall,
        "tokens_per_s": workload.sequence_tokens / total,
        "sides": {side.name: _side_numbers(side) for side in sides},
    }
    if options.device == "cpu":
        found["peak_share_cpu"] = flops / ours.cpu_s / rate.cpu
    print(
        f"\nmatrix products: {rate.wall / 1e9:,.0f} GFLOP/s; useful work {flops / 1e12:,.2f} "
        f"TFLOP, {flops / rate.wall:.1f} s at that rate\n"
    )
    tokens, device = workload.sequence_tokens, options.device
    print(
        side_by_side(sides, pairs=pairs, tokens=tokens, flops=flops, rate=rate, device=device),
        flush=True,
    )
    if theirs:
        found |= _against(ours, theirs, device=device)
        found["trl_best_way"] = asdict(runs.ways[found["trl_best"]])
        within = f" (among TRL's own settings {found['loss_difference_within_trl']:.1e})"
        print(
            f"largest difference of the loss over {steps} optimizer steps: "
            f"{found['loss_difference']:.1e}{within if len(theirs) > 1 else ''}; the loss went "
            f"from {ours.runs[0].losses[0]:.4f} to {ours.runs[0].losses[-1]:.4f}"
        )
    return found


def _against(ours: Side, theirs: Sequence[Side], *, device: str) -> dict[str, Any]:
    best = fastest(theirs)
    usual = next((side for side in theirs if side.name == AS_CONFIGURED.name), best)
    found: dict[str, Any] = {"trl_usual": usual.name, "trl_best": best.name}
    for suffix, side in (("", usual), ("_best", best)):
        values = ratios(ours, side, device=device)
        found |= {f"{name}{suffix}": value for name, value in values.items()}
        said = ", ".join(f"{n.replace('_ratio', '')} {v:.2f}x" for n, v in values.items())
        which = "at its best" if side is best else "as configured"
        if not suffix or side is not usual:
            print(f"{side.name} ({which}) over sdpo: {said}")
    curve = theirs[0].runs[0].losses
    found["loss_difference"] = loss_difference([ours], curve)
    found["loss_difference_within_trl"] = loss_difference(theirs, curve)
    return found


def _side_numbers(side: Side) -> dict[str, Any]:
    phases = {name for run in side.runs for name in run.seconds}
    names = ("peak_bytes", "imports_bytes", "device_allocated_bytes", "device_reserved_bytes")
    return {
        **{name: side.seconds(name) for name in ("prepare_s", "score_s", "train_s", "total_s")},
        "phases_s": {
            name: median(run.seconds.get(name, 0.0) for run in side.runs) for name in sorted(phases)
        },
        "cpu_s": side.cpu_s,
        "process_s": side.usage("wall_s"),
        **{name: side.usage(name) for name in names},
        "losses": side.runs[0].losses,
        "runs": [{"seconds": run.seconds, **_usage(run.usage)} for run in side.runs],
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {name: value for name, value in asdict(usage).items() if value}


def curve(options: Options, *, way: Way, steps: int = 20) -> dict[str, Any]:
    """Compare the loss curves of both sides over ``steps`` optimizer steps."""
    options = options.below("curve")
    workload = options.workload(pairs=steps * options.batch_size)
    training = options.training(workload)
    ours = run_step(workload, options.folder / "sdpo", training, options.launch)
    theirs = run_trl(workload, options.folder / "trl", training, way=way, threads=options.threads)
    difference = loss_difference([Side("sdpo", [ours])], theirs.losses)
    print(
        f"\n== loss over {steps} optimizer steps: {ours.losses[0]:.4f} to {ours.losses[-1]:.4f}, "
        f"largest difference from {theirs.name} {difference:.1e}"
    )
    return {"curve_loss_difference": difference, "curve_optimizer_steps": steps}


def warm(options: Options, workload: Workload) -> dict[str, float]:
    """Score with a cold cache, then again with the cache of the first run and another beta."""
    folder = options.folder / "warm"
    training = options.training(workload, max_steps=1)
    cold = run_step(workload, folder / "cold", training, options.launch, cache=folder / "cache")
    other = options.training(workload, max_steps=1, beta=0.3)
    again = run_step(workload, folder / "again", other, options.launch, cache=folder / "cache")
    share = again.score_s / cold.score_s
    print(
        f"\n== scoring with a warm cache and another beta: {again.score_s:.3f} s, {share:.2%} of "
        f"{cold.score_s:.2f} s with a cold one"
    )
    return {"warm_share": share, "cold_score_s": cold.score_s, "warm_score_s": again.score_s}
