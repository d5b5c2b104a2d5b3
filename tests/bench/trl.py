"""This project and TRL on the same rows: ``python -m tests.bench.trl [--json FILE]``."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from sdpo import machine
from tests.bench.ours import Measurement, launch_config, run_step, training_config
from tests.bench.report import Side, loss_difference, ratios, trainers_table
from tests.bench.rivals import has_trl, run_trl
from tests.bench.shapes import LENGTHS, SHAPES
from tests.bench.workload import Settings, Workload, read_workload


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trl", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", choices=list(SHAPES), help="default: 5M, on cuda 1B")
    parser.add_argument("--lengths", choices=list(LENGTHS), default="ultrafeedback")
    parser.add_argument("--pairs", type=int, help="default: 128, on cuda 512")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per optimizer step")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each program, in turn")
    parser.add_argument(
        "--trl", default="8,4,2,1", help="pairs per device to run TRL with; empty: leave TRL out"
    )
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it there")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a training setting"
    )
    return parser.parse_args()


def main() -> None:
    """Run everything and print it."""
    args = arguments()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        numbers = run(args, args.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="sdpo-bench-") as folder:
            numbers = run(args, Path(folder))
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All sections; returns what goes into the JSON file."""
    workload = make_workload(args, folder / "workload")
    describe(args, workload)
    return compare(args, workload, folder)


def make_workload(args: argparse.Namespace, folder: Path) -> Workload:
    """The workload that the arguments ask for, made in a process of its own."""
    on_cpu = args.device == "cpu"
    settings = Settings(
        folder=str(folder),
        model=args.model or ("5M" if on_cpu else "1B"),
        lengths=args.lengths,
        pairs=args.pairs or (128 if on_cpu else 512),
        batch_size=args.batch_size,
        seed=args.seed,
        device=args.device,
        dtype="float32" if on_cpu else "bfloat16",
    )
    command = [sys.executable, "-m", "tests.bench.workload", json.dumps(asdict(settings))]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return read_workload(folder)


def describe(args: argparse.Namespace, workload: Workload) -> None:
    """Say what is measured."""
    settings, lengths = workload.settings, workload.facts["lengths"]
    means = [sum(column) / len(lengths) for column in zip(*lengths, strict=True)]
    print(
        f"{settings.pairs} pairs of {means[0]:.0f} prompt, {means[1]:.0f} chosen, {means[2]:.0f} "
        f"rejected tokens on average ({settings.lengths}); Llama of "
        f"{settings.shape.parameters / 1e6:,.1f}M random weights, {settings.dtype}; global batch "
        f"{settings.batch_size}; {args.device}, {args.threads} threads; medians of {args.repeat}"
    )


def matmul_rate(args: argparse.Namespace, workload: Workload) -> float:
    """FLOP/s of matrix products on this device, now."""
    dtype = "float32" if args.device == "cpu" else "bfloat16"
    command = [sys.executable, "-m", "tests.bench.matmul", args.device, dtype, str(args.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


def compare(args: argparse.Namespace, workload: Workload, folder: Path) -> dict[str, Any]:
    """Scoring and training D_1, side by side."""
    changes = dict(entry.split("=", 1) for entry in args.set)
    training = training_config(workload, **changes)
    launch = launch_config(device=args.device, threads=args.threads)
    sizes = [int(size) for size in filter(None, args.trl.split(","))] if has_trl() else []
    runs: dict[str, list[Measurement]] = {}
    rates: list[float] = []

    def add(measurement: Measurement) -> None:
        runs.setdefault(measurement.name, []).append(measurement)
        usage = measurement.usage
        print(
            f"  {measurement.name}: score {measurement.score_s:.1f} s, train "
            f"{measurement.train_s:.1f} s, peak {usage.peak_bytes / 1e6:,.0f} MB",
            file=sys.stderr,
        )

    for turn in range(args.repeat):
        rates.append(matmul_rate(args, workload))
        add(run_step(workload, folder / f"sdpo-{turn}", training, launch))
        for size in sizes:
            place = folder / f"trl-{size}-{turn}"
            add(run_trl(workload, place, training, per_device=size, threads=args.threads))
        if sizes:
            best = fastest([Side(name, runs[name]) for name in runs if name != "sdpo"])
            size = sizes[[f"TRL, {s} per device" for s in sizes].index(best.name)]
            place = folder / f"trl-plain-{turn}"
            add(
                run_trl(
                    workload,
                    place,
                    training,
                    per_device=size,
                    threads=args.threads,
                    precompute=False,
                )
            )
    sides = [Side(name, found) for name, found in runs.items()]
    peak = max(rates)
    print(
        f"\nmatrix products: {peak / 1e9:,.0f} GFLOP/s; useful work {workload.flops / 1e12:.2f} "
        f"TFLOP, {workload.flops / peak:.1f} s at that rate\n"
    )
    print(
        trainers_table(
            sides,
            pairs=workload.settings.pairs,
            flops=workload.flops,
            peak=peak,
            device=args.device,
        )
    )
    return numbers(args, workload, sides, peak)


def fastest(sides: list[Side]) -> Side:
    """Of those that precompute, the one with the least time for scoring and training."""
    return min(
        (side for side in sides if not side.name.endswith("not precomputed")),
        key=lambda side: side.seconds("total_s"),
    )


def numbers(
    args: argparse.Namespace, workload: Workload, sides: list[Side], peak: float
) -> dict[str, Any]:
    """What the JSON file holds of the comparison; prints the ratios."""
    ours, *theirs = sides
    total = ours.seconds("total_s")
    found: dict[str, Any] = {
        "settings": asdict(workload.settings),
        "threads": args.threads,
        "repeat": args.repeat,
        "matmul_flops": peak,
        "useful_flops": workload.flops,
        "peak_share": workload.flops / total / peak,
        "tokens_per_s": workload.sequence_tokens / total,
        "sides": {side.name: side_numbers(side) for side in sides},
        "optimizer_steps": len(ours.runs[0].losses),
    }
    print(f"\nshare of the matrix-product rate: {found['peak_share']:.1%}")
    if not theirs:
        return found
    usual = theirs[0]
    best = fastest(theirs)
    for suffix, side in (("", usual), ("_best", best)):
        values = ratios(ours, side, device=args.device)
        found |= {
            f"{name.split('_')[0]}_ratio{suffix}{'_net' if name.endswith('_net') else ''}": v
            for name, v in values.items()
        }
        print(f"{side.name} over sdpo: " + ", ".join(f"{k} {v:.2f}x" for k, v in values.items()))
    precomputed = [side for side in theirs if not side.name.endswith("not precomputed")]
    found["trl_best"] = best.name
    found["loss_difference"] = loss_difference([ours], precomputed[0])
    found["loss_difference_within_trl"] = loss_difference(precomputed, precomputed[0])
    print(
        f"largest difference of the loss over {found['optimizer_steps']} optimizer steps: "
        f"{found['loss_difference']:.1e} (between TRL's own settings: "
        f"{found['loss_difference_within_trl']:.1e}); losses "
        f"{ours.runs[0].losses[0]:.4f} to {ours.runs[0].losses[-1]:.4f}"
    )
    return found


def side_numbers(side: Side) -> dict[str, Any]:
    """All runs of a program."""
    return {
        "score_s": side.seconds("score_s"),
        "train_s": side.seconds("train_s"),
        "total_s": side.seconds("total_s"),
        "cpu_s": side.cpu_s,
        "peak_bytes": side.usage("peak_bytes"),
        "imports_bytes": side.usage("imports_bytes"),
        "phases_s": {k: median(r.seconds[k] for r in side.runs) for k in side.runs[0].seconds},
        "runs": [asdict(run) for run in side.runs],
    }


if __name__ == "__main__":
    main()
