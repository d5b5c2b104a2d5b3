"""Measure tokenising of the same rows, both sides in processes of their own."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measured import TRL_IMPORTS, run_measured
from benchmarks.options import Options
from benchmarks.ours import run_tokenise
from benchmarks.report import table
from benchmarks.rivals import Way, environment, trl_spec
from benchmarks.workload import Workload


def tokenise(options: Options, *, pairs: int) -> dict[str, Any]:
    """Time our stage, and TRL's own preparation in one process and in one for each thread."""
    options = options.below("tokenise")
    # The model's size does not matter, but TRL's trainer wants one.
    workload = options.workload(model="5M", pairs=pairs)
    programs: dict[str, list[float]] = {}
    counts = sorted({1, options.threads})
    for turn in range(options.repeat):
        ours = run_tokenise(workload, options.folder / f"sdpo-{turn}", threads=options.threads)
        programs.setdefault("sdpo", []).append(ours.seconds["prepare"])
        if not options.sizes:
            continue
        for count in counts:
            name = f"TRL, {count} process{'es' if count > 1 else ''}"
            place = options.folder / f"trl-{count}-{turn}"
            seconds = _trl(options, workload, place, processes=count)
            programs.setdefault(name, []).append(seconds)
    medians = {name: median(seconds) for name, seconds in programs.items()}
    print(f"\n== tokenising {pairs} pairs of {options.lengths[0]}")
    rows = [[name, f"{s:.2f}", f"{pairs / s:,.0f}"] for name, s in medians.items()]
    print(table(["", "s", "pairs/s"], rows))
    found: dict[str, Any] = {"tokenise_pairs": pairs, "tokenise_s": medians}
    ours_s, *theirs = medians.values()
    if theirs:
        found["tokenise_ratio"] = theirs[0] / ours_s
        found["tokenise_ratio_best"] = min(theirs) / ours_s
        print(
            f"TRL over sdpo: as configured {found['tokenise_ratio']:.2f}x, at its best "
            f"{found['tokenise_ratio_best']:.2f}x"
        )
    return found


def _trl(options: Options, workload: Workload, folder: Path, *, processes: int) -> float:
    """Return the seconds of ``DPOTrainer._prepare_dataset``.

    Raises:
        RuntimeError: TRL failed, or made other tokens.
    """
    training = options.training(workload)
    spec = trl_spec(workload, folder, training, rows=[workload.ordered(1)], way=Way(per_device=1))
    spec |= {"precompute": False, "train": False, "num_proc": processes if processes > 1 else None}
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    run_measured(
        folder / "usage.json",
        TRL_IMPORTS,
        "benchmarks.theirs",
        str(path),
        environment=environment(threads=options.threads, cache=folder / "datasets"),
    )
    [result] = json.loads(Path(spec["results"]).read_text(encoding="utf-8"))
    if result["tokens"] != workload.facts["tokens"]:
        raise RuntimeError("TRL made other tokens: the comparison would mean nothing")
    seconds: float = result["seconds"]["prepare"]
    return seconds
