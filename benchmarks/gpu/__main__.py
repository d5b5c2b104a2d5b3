"""Say how this project does on a GPU: ``python -m benchmarks.gpu --minutes 8 --json FILE``.

One call does it all. The most telling parts come first, each in a process of its own with a time
limit of its own, and none stops the rest: layouts (values, gradients, dtypes, recompiles, masks),
the gate's noise in bf16, a real stage with its replay and resume, out of memory on purpose, the
rate of a training and its kernels, the same beside TRL, an 8B model with adapters, and what
training.compile gains.

It needs this repository, torch >= 2.11, transformers >= 5.17, accelerate, peft, pyarrow, pyyaml,
jinja2, psutil, rich and typer, as an image for training has them, and these wheels, 4.5 MB in all:
pydantic, pydantic_core, annotated_types, typing_inspection, datasets, dill, multiprocess, and trl
for the comparison. It needs neither prefect nor deepspeed. Without flash-attn its row says so.

``--device cpu --tiny`` runs the same code on a CPU.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.gpu.findings import Settings
from benchmarks.gpu.schedule import Outcome, Part, Schedule
from sdpo.system.files import write_text

_PARTS = (
    Part(
        name="layouts",
        what="layouts against plain fp32",
        limit_s=110,
        beside=(
            Part(name="gate", what="the gate's noise", limit_s=60),
            Part(name="workloads", what="workloads", limit_s=90),
        ),
    ),
    Part(name="stage", what="a stage, its replay and resume", limit_s=170),
    Part(name="memory", what="out of memory on purpose", limit_s=80),
    Part(name="training", what="a training's rate and kernels", limit_s=80),
    Part(name="peer", what="beside TRL", limit_s=130),
    Part(name="adapters", what="8B with adapters", limit_s=80),
    Part(name="compiling", what="training.compile", limit_s=100),
)
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "flash-attn", "triton")
_CPU_PATIENCE = 4.0
"""On a CPU a part may take so many times as long: tiny shapes spend their time on starting
processes, of which it runs few at a time."""


@dataclass(kw_only=True)
class _Table:
    """A table is what was found so far: printed row by row, and written to a file each time."""

    device: str
    versions: str
    tiny: bool
    path: Path | None
    begun: float
    outcomes: list[Outcome] = field(default_factory=list)

    def tell(self, outcome: Outcome) -> None:
        """Add what a part found, and print it. A full disk costs the file, and no part."""
        self.outcomes.append(outcome)
        print(_lines(outcome, since=self.begun), flush=True)
        try:
            self.write()
        except OSError as error:
            print(f"{self.path} is not written: {error}", file=sys.stderr, flush=True)

    def write(self) -> None:
        """Write the file, where one is asked for.

        Raises:
            OSError: it cannot be written.
        """
        if self.path is None:
            return
        content = {
            "device": self.device,
            "versions": self.versions,
            "tiny": self.tiny,
            "seconds": round(time.monotonic() - self.begun, 1),
            "parts": [asdict(outcome) for outcome in self.outcomes],
        }
        # JSON has no NaN: null takes the place of what is no number.
        whole = json.loads(json.dumps(content), parse_constant=lambda _: None)
        write_text(self.path, json.dumps(whole, indent=1, allow_nan=False) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, print the table, write the JSON; return 1 where a part did not pass."""
    args = _parser().parse_args(argv)
    names = [name for part in _PARTS for name in (part.name, *(p.name for p in part.beside))]
    if unknown := set(args.only.split(",") if args.only else ()) - set(names):
        raise SystemExit(f"--only: {', '.join(sorted(unknown))}; known are {', '.join(names)}")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    # Blocks of one size after another break a device's memory into pieces that nothing fits.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch wants it for sums in order
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    begun = time.monotonic()
    table = _Table(
        device=_card(args.device),
        versions=_versions(),
        tiny=args.tiny,
        path=args.json,
        begun=begun,
    )
    try:
        table.write()  # nobody wants to hear after eight minutes that it cannot be
    except OSError as error:
        raise SystemExit(f"--json {args.json}: {error.strerror or error}") from None
    print(f"{table.device}; {table.versions}", flush=True)
    with tempfile.TemporaryDirectory(prefix="sdpo-gpu-", ignore_cleanup_errors=True) as temporary:
        folder = _new_folder(args.keep) if args.keep else Path(temporary)
        settings = Settings(
            device=args.device, tiny=args.tiny, folder=str(folder), threads=args.threads
        )
        schedule = Schedule(
            settings,
            seconds=60 * args.minutes - (time.monotonic() - begun),
            patience=_CPU_PATIENCE if args.device == "cpu" else 1.0,
        )
        schedule.run(_chosen(args.only), table.tell)
    return _judged(table.outcomes)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """End the command; further signals are ignored, since what it does to end takes seconds."""
    for other in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _new_folder(path: Path) -> Path:
    """Make the folder and return it whole.

    Raises:
        SystemExit: it cannot be made, or is not empty: what an earlier call left there would be
            taken for what this one found.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise SystemExit(f"--keep {path}: it is not empty; name a new folder")
    except OSError as error:
        raise SystemExit(f"--keep {path}: {error.strerror or error}") from None
    return path.resolve()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="it ends by itself in these")
    parser.add_argument("--json", type=Path, help="write what was found to this file, as it comes")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does the command work?")
    parser.add_argument("--only", help="names of parts, with commas")
    parser.add_argument("--threads", type=_threads, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--keep", type=Path, help="work in this new folder and leave it there")
    return parser


def _minutes(text: str) -> float:
    minutes = float(text)
    if not (math.isfinite(minutes) and minutes > 0):
        raise argparse.ArgumentTypeError(f"{text} is no time that can be kept")
    return minutes


def _threads(text: str) -> int:
    threads = int(text)
    if threads < 1:
        raise argparse.ArgumentTypeError("there is one at least")
    return threads


def _chosen(only: str | None) -> list[Part]:
    """Return the parts that were asked for, with the workloads that they read."""
    if not only:
        return list(_PARTS)
    wanted = set(only.split(","))
    if wanted & {"stage", "memory", "peer"}:
        wanted.add("workloads")
    flat = [one for part in _PARTS for one in (part, *part.beside)]
    first = [Part(name=p.name, what=p.what, limit_s=p.limit_s) for p in flat if p.name in wanted]
    return sorted(first, key=lambda part: part.name != "workloads")


def _lines(outcome: Outcome, *, since: float) -> str:
    """Return a part's rows of the table, and its fault if it has one, as text."""
    head = f"── {outcome.name} ({outcome.ended}, {outcome.seconds:.0f} s; "
    head += f"{time.monotonic() - since:.0f} s of the whole)"
    rows = [f"{f.verdict:5}{f.what}: {f.seen}" for f in outcome.findings]
    fault = [f"     {line}" for line in outcome.fault.splitlines()[-14:]]
    return "\n".join([head, *rows, *fault])


def _judged(outcomes: Sequence[Outcome]) -> int:
    """Print what did not pass; return 1 where something failed or a part is not whole, else 0."""
    failed = [f"{o.name}: {f.what}" for o in outcomes for f in o.findings if f.ok is False]
    ended = [f"{o.name} ({o.ended})" for o in outcomes if o.ended in ("failed", "time", "stopped")]
    left = [o.name for o in outcomes if o.ended == "left"]
    passed = sum(f.ok is True for o in outcomes for f in o.findings)
    print(f"\n{passed} passed, {len(failed)} failed")
    for title, names in (("FAIL", failed), ("not whole", ended), ("no time for", left)):
        if names:
            print(f"{title}: {'; '.join(names)}")
    return 1 if failed or ended else 0


def _card(device: str) -> str:
    """Return the device's name, asked in another process: this one takes no memory of it.

    Raises:
        SystemExit: no GPU answers.
    """
    if device == "cpu":
        return f"CPU, {os.cpu_count()} cores"
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemExit(f"no GPU answers ({error}); --device cpu --tiny runs on a CPU") from None
    return done.stdout.strip().partition("\n")[0]


def _versions() -> str:
    found = {"python": sys.version.partition(" ")[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return ", ".join(f"{name} {said}" for name, said in found.items())


if __name__ == "__main__":
    sys.exit(main())
