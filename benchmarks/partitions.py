"""Plan many pairs: ``python -m benchmarks.partitions [--pairs 1000000,10000000]``.

Every plan is made in a process of its own from synthetic columns, as the chain makes it: reserve,
plan, prompts that occur in several steps. The peak of memory includes the columns.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured import run_measured
from benchmarks.report import MB, table
from partitions import Pairs, PartitionSettings, make_plan, prompt_overlap, reserve_mask

SOURCES, TOPICS = 8, 50

STRATEGIES: Mapping[str, PartitionSettings] = {
    "natural": PartitionSettings(strategy="natural"),
    "natural, easy first": PartitionSettings(strategy="natural", order="easy_first"),
    "stratified": PartitionSettings(strategy="stratified"),
    "stratified by two": PartitionSettings(strategy="stratified", strata=("source", "topic")),
    "random": PartitionSettings(strategy="random"),
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns are synthetic pairs and the id of each one's prompt, uint64 ``[n, 2]``."""

    pairs: Pairs
    prompt_ids: np.ndarray


def columns(n: int, *, seed: int = 0) -> Columns:
    """Return ``n`` pairs of eight sources of very different sizes.

    Four pairs in five have a prompt of their own, the others one of another pair.
    """
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, SOURCES + 1)
    ids = rng.integers(0, 2**64, (n, 2), dtype=np.uint64)
    prompt_ids = ids[::-1].copy()
    shared = rng.choice(n, n // 5, replace=False)
    prompt_ids[shared] = prompt_ids[rng.integers(0, n, len(shared))]
    pairs = Pairs(
        ids=ids,
        source=rng.choice(SOURCES, n, p=shares / shares.sum()).astype(np.int32),
        source_names=tuple(f"source-{k}" for k in range(SOURCES)),
        strata={"topic": rng.integers(0, TOPICS, n, dtype=np.int32)},
        features={"gamma": rng.standard_normal(n)},
    )
    return Columns(pairs, prompt_ids)


def plan(n: int, strategy: str) -> dict[str, Any]:
    """Plan once; return the seconds of each part, and the pairs of each step."""
    data = columns(n)
    seconds: dict[str, float] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        seconds[name] = time.perf_counter() - start
        return result

    pairs = data.pairs
    mask = timed(
        "reserve",
        lambda: reserve_mask(
            data.prompt_ids,
            pairs.source,
            n_sources=SOURCES,
            fraction=0.03,
            min_pairs=64,
            max_fraction=0.1,
            key="sdpo",
        ),
    )
    kept = timed("select", lambda: _kept(pairs, ~mask))
    made = timed("plan", lambda: make_plan(kept, STRATEGIES[strategy]))
    timed("overlap", lambda: prompt_overlap(data.prompt_ids[~mask], made.step_of))
    assert sum(step.pairs for step in made.steps) == n - int(mask.sum())
    return {"seconds": seconds, "steps": [step.pairs for step in made.steps]}


def _kept(pairs: Pairs, mask: np.ndarray) -> Pairs:
    return replace(
        pairs,
        ids=pairs.ids[mask],
        source=pairs.source[mask],
        strata={name: codes[mask] for name, codes in pairs.strata.items()},
        features={name: values[mask] for name, values in pairs.features.items()},
    )


def main() -> None:
    """Plan each size by each strategy, or, as a child, once."""
    if sys.argv[1:2] == ["--one"]:
        pairs, name, out = sys.argv[2:]
        Path(out).write_text(json.dumps(plan(int(pairs), name)), encoding="utf-8")
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.partitions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", default="1000000,10000000", help="sizes, with commas")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    numbers: dict[str, Any] = {}
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="sdpo-bench-") as folder:
        for n in map(int, args.pairs.split(",")):
            for strategy in STRATEGIES:
                found = _measure(n, strategy, Path(folder))
                numbers.setdefault(str(n), {})[strategy] = found
                rows.append(_row(n, strategy, found))
    print(table(["pairs", "strategy", "wall s", "reserve", "plan", "overlap", "peak MB"], rows))
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def _measure(n: int, strategy: str, folder: Path) -> dict[str, Any]:
    out = folder / "plan.json"
    arguments = ("--one", str(n), strategy, str(out))
    usage = run_measured(
        folder / "usage.json", ("partitions",), "benchmarks.partitions", *arguments
    )
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found | {
        "wall_s": sum(found["seconds"].values()),
        "process_s": usage.wall_s,
        "cpu_s": usage.cpu_s,
        "peak_bytes": usage.peak_bytes,
    }


def _row(n: int, strategy: str, found: dict[str, Any]) -> list[str]:
    parts = [f"{found['seconds'][part]:.1f}" for part in ("reserve", "plan", "overlap")]
    wall, peak = f"{found['wall_s']:.1f}", f"{found['peak_bytes'] / MB:,.0f}"
    return [f"{n:,}", strategy, wall, *parts, peak]


if __name__ == "__main__":
    main()
