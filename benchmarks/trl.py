"""Compare this project and TRL on the same rows: ``python -m benchmarks.trl [--json FILE]``.

Every program that is measured is a process of its own, and they run in turn, so that a busy machine
is busy for all of them. Ratios are TRL over this project. A GPU's machine needs no more than torch,
transformers, accelerate, peft and what the project needs to read files; TRL's columns are there
where TRL is installed.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chain import chain, orchestration
from benchmarks.compare import compare, curve, warm
from benchmarks.options import Options
from benchmarks.rivals import Way, has_trl
from benchmarks.shapes import LENGTHS, SHAPES
from benchmarks.tokenising import tokenise
from sdpo.system import machine

SECTIONS = ("compare", "warm", "curve", "tokenise", "chain", "orchestration")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sections that the command line asks for, and print them."""
    args = _parser().parse_args(argv)
    if args.keep:
        numbers = run(_options(args, args.keep), args)
    else:
        with tempfile.TemporaryDirectory(prefix="sdpo-bench-") as folder:
            numbers = run(_options(args, Path(folder)), args)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--model",
        metavar="SHAPE|FOLDER",
        help=f"random weights of a shape ({', '.join(SHAPES)}; default: 5M, on cuda 1B), or the "
        "folder of a real Llama, with --rows",
    )
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FILE",
        help="JSONL of `prompt`, `chosen`, `rejected` (strings), whose first pairs that fit a real "
        "model is compared on",
    )
    parser.add_argument("--max-length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument(
        "--lengths",
        help=f"of {', '.join(LENGTHS)}; several with commas. The first is the one that the other "
        "sections run on. Default: ultrafeedback,hh,tldr; on cuda ultrafeedback-long,hh,tldr",
    )
    parser.add_argument("--pairs", type=int, help="default: 128; on cuda 512")
    parser.add_argument("--batch-size", type=int, help="pairs per optimizer step: 8; on cuda 32")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each program, in turn")
    parser.add_argument(
        "--trl", default="8,4,2,1", help="pairs per device to run TRL with; empty: leave TRL out"
    )
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", help=f"of {', '.join(SECTIONS)}; on cuda compare,warm by default")
    parser.add_argument("--tokenise-pairs", type=int, default=4000)
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it there")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a training setting"
    )
    return parser


def _options(args: argparse.Namespace, folder: Path) -> Options:
    on_cpu = args.device == "cpu"
    weights = _weights(args)
    if weights:
        args.lengths = "ultrafeedback"  # a name for its folder: the rows are the file's
    lengths = args.lengths or ("ultrafeedback,hh,tldr" if on_cpu else "ultrafeedback-long,hh,tldr")
    names = tuple(lengths.split(","))
    if unknown := set(names) - set(LENGTHS):
        raise SystemExit(f"--lengths: {', '.join(unknown)}; known are {', '.join(LENGTHS)}")
    sizes = tuple(int(size) for size in args.trl.split(",") if size)
    batch_size = args.batch_size or (8 if on_cpu else 32)
    if uneven := [size for size in sizes if batch_size % size]:
        raise SystemExit(
            f"--trl: {uneven[0]} pairs per device do not divide a batch of {batch_size}"
        )
    return Options(
        folder=folder,
        device=args.device,
        model=Path(weights).name if weights else args.model or ("5M" if on_cpu else "1B"),
        lengths=names,
        pairs=args.pairs or (128 if on_cpu else 512),
        batch_size=batch_size,
        repeat=args.repeat,
        sizes=sizes if has_trl() else (),
        threads=args.threads,
        seed=args.seed,
        changes=dict(entry.split("=", 1) for entry in args.set),
        weights=weights,
        rows=str(args.rows.absolute()) if args.rows else "",
        max_length=args.max_length,
    )


def _weights(args: argparse.Namespace) -> str:
    """Return the folder of a real model; empty for random weights.

    Raises:
        SystemExit: the model is neither a shape nor a folder, or its rows are missing.
    """
    if args.model is None or args.model in SHAPES:
        if args.rows:
            raise SystemExit("--rows: drawn weights have drawn rows: give --model a folder")
        return ""
    folder = Path(args.model).absolute()
    if not (folder / "config.json").is_file():
        raise SystemExit(
            f"--model {args.model}: neither a shape ({', '.join(SHAPES)}) nor a folder with a model"
        )
    if args.rows is None or not args.rows.is_file():
        raise SystemExit(f"--model {args.model}: a real model needs --rows FILE, which is there")
    if args.lengths:
        raise SystemExit("--lengths: a real model is compared on the rows of the file")
    return str(folder)


def run(options: Options, args: argparse.Namespace) -> dict[str, Any]:
    """Run all sections that were asked for, and return the numbers.

    Those of the first lengths are at the top level, those of the others under ``lengths``.

    Raises:
        SystemExit: there is no such section.
    """
    default = SECTIONS if options.device == "cpu" else ("compare", "warm")
    sections = args.only.split(",") if args.only else default
    if unknown := set(sections) - set(SECTIONS):
        raise SystemExit(f"--only: {', '.join(unknown)}; known are {', '.join(SECTIONS)}")
    numbers: dict[str, Any] = {}
    first, *others = options.lengths
    workload = None
    if "compare" in sections:
        workload, numbers = compare(options, first)
        numbers["lengths"] = {name: compare(options, name)[1] for name in others}
    # Where nothing was compared, the size that comes last is taken for TRL's best: nothing is
    # scored first, since TRL then computes the same in less time.
    best = Way(per_device=(options.sizes or (1,))[-1], precompute=False)
    if "trl_best_way" in numbers:
        best = Way(**numbers["trl_best_way"])
    if "warm" in sections:
        numbers |= warm(options, workload or options.workload())
    if "curve" in sections and options.sizes:
        numbers |= curve(options, way=best)
        found = (numbers.get("loss_difference", 0.0), numbers["curve_loss_difference"])
        numbers["loss_difference"] = max(found)
    if "tokenise" in sections:
        numbers |= tokenise(options, pairs=args.tokenise_pairs)
    if "chain" in sections:
        numbers |= chain(options, way=best)
    if "orchestration" in sections:
        numbers |= orchestration(options)
    return numbers


if __name__ == "__main__":
    main()
