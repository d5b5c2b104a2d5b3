"""Measure private memory at 10k and 100k pairs: ``python -m benchmarks.memory [--json FILE]``.

The chain's own nodes run up to the plan, gamma of every pair under M_0 included, with a toy model
and pairs of at most 64 tokens. The anonymous memory (RssAnon) of the command and all that it starts
is sampled, and kept apart by the stage that runs. Mapped files are not counted: the kernel takes
their memory back at will.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measured import FamilyUsage, run_family, run_module
from benchmarks.report import MB, table
from benchmarks.workload import Settings, Workload, read_workload
from sdpo.chain import data, plan_check
from sdpo.chain import plan as planning
from sdpo.chain.context import Context
from sdpo.chain.execute import execute
from sdpo.chain.features import measure_gamma
from sdpo.chain.node import Part
from sdpo.chain.open_run import open_run
from sdpo.chain.reserve import reserve
from sdpo.chain.tokens import tokenise
from sdpo.config.load import load_recipe
from sdpo.system import machine

PARTS = {"": "prepare, reserve", "tokenise": "tokenise", "measure-M_0": "score", "plan": "plan"}
"""These parts run, by the name of their stage: "" is the command up to the plan, which has a
process of its own. A plan has every pair in memory by design, see ``benchmarks.partitions``."""

NODES: dict[str, tuple[Callable[[Context], Part], ...]] = {
    "nodes": (
        data.prepare_data,
        tokenise,
        reserve,
        measure_gamma,
    ),
    "plan": (plan_check.check, planning.partition),
}
"""A child of this program runs these nodes, by its first argument."""

MAX_LENGTH = 64


def main() -> None:
    """Measure both sizes, or, as a child, run the nodes."""
    if len(sys.argv) > 1 and sys.argv[1] in NODES:
        with open_run(load_recipe(Path(sys.argv[2]))) as context:
            for part in NODES[sys.argv[1]]:
                execute(context, [part(context)])
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", default="10000,100000", help="two sizes, with a comma")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    few, many = map(int, args.pairs.split(","))
    with tempfile.TemporaryDirectory(prefix="sdpo-bench-") as folder:
        found = {pairs: measure(pairs, Path(folder) / str(pairs)) for pairs in (few, many)}
    numbers = _growth(found, few, many)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def measure(pairs: int, folder: Path) -> FamilyUsage:
    """Run the nodes over so many pairs, the plan after the others, and return what they took."""
    folder.mkdir(parents=True)
    settings = Settings(
        folder=str(folder / "workload"),
        model="toy",
        lengths="toy",
        pairs=pairs // 2,
        steps=2,
        max_length=MAX_LENGTH,
        prepared=False,
    )
    run_module("benchmarks.workload", settings.to_json(), log=folder / "workload.log")
    recipe = _recipe(read_workload(settings.path), folder)
    run, plan = (
        run_family(
            [sys.executable, "-m", "benchmarks.memory", name, str(recipe)],
            log=folder / "log",
            environment={"HF_HUB_OFFLINE": "1"},
            every_s=0.02,
        )
        for name in NODES
    )
    peaks = run.peak_private_bytes | {"plan": plan.peak_private_bytes[""]}
    return replace(run, wall_s=run.wall_s + plan.wall_s, peak_private_bytes=peaks)


def _recipe(workload: Workload, folder: Path) -> Path:
    """Write the recipe of a run whose plan needs gamma of every pair, and return its path."""
    recipe = {
        "name": "bench",
        "model": {"name_or_path": str(workload.model)},
        "data": {
            "sources": [{"name": f"D_{k}", "path": str(workload.source(k))} for k in (1, 2)],
            "max_length": MAX_LENGTH,
        },
        "partition": {"strategy": "natural", "order": "easy_first"},
        "launch": {"device": "cpu", "threads": machine.cores()},
        "store": {"runs_dir": str(folder / "runs")},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def _growth(found: dict[int, FamilyUsage], few: int, many: int) -> dict[str, Any]:
    peaks = {pairs: usage.peak_private_bytes for pairs, usage in found.items()}
    grown = {
        name: peaks[many].get(stage, 0) / peaks[few].get(stage, 1) - 1
        for stage, name in PARTS.items()
    }
    rows = [
        [
            name,
            *(f"{peaks[pairs].get(stage, 0) / MB:,.0f}" for pairs in (few, many)),
            f"{grown[name]:+.1%}",
        ]
        for stage, name in PARTS.items()
    ]
    print(f"Private memory, MB, of the command and its stages; toy model, {os.cpu_count()} cores")
    print(table(["", f"{few:,} pairs", f"{many:,} pairs", "growth"], rows))
    walls = {pairs: usage.wall_s for pairs, usage in found.items()}
    print(", ".join(f"{pairs:,} pairs: {wall:.0f} s" for pairs, wall in walls.items()))
    return {
        "private_bytes": {str(pairs): peak for pairs, peak in peaks.items()},
        "growth": grown,
        "largest_growth": max(value for name, value in grown.items() if name != "plan"),
        "wall_s": {str(pairs): wall for pairs, wall in walls.items()},
    }


if __name__ == "__main__":
    main()
