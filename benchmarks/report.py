"""Compute medians of repeated runs and ratios between them, and make the tables that show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.matmul import Rate
from benchmarks.ours import Measurement

MB = 1e6


@dataclass(frozen=True, slots=True)
class Side:
    """A side has all runs of one program."""

    name: str
    runs: Sequence[Measurement]

    def seconds(self, phase: str) -> float:
        """Return the median of ``prepare_s``, ``score_s``, ``train_s``, ``alone_s`` or
        ``total_s``."""
        return float(median(getattr(run, phase) for run in self.runs))

    def usage(self, name: str) -> float:
        """Return the median of a field of :class:`~benchmarks.measured.Usage`."""
        return float(median(getattr(run.usage, name) for run in self.runs))

    @property
    def cpu_s(self) -> float:
        """Return the median CPU seconds of the process, without importing."""
        return median(run.usage.cpu_s - run.usage.imports_cpu_s for run in self.runs)

    def memory(self, *, device: str, net: bool = False) -> float:
        """Return the median peak bytes: of a GPU where one is used, else of the process.

        ``net``: without what importing takes, which is known of a process alone.
        """
        if device != "cpu":
            return self.usage("device_allocated_bytes")
        return self.usage("net_bytes" if net else "peak_bytes")


def loss_difference(sides: Sequence[Side], curve: Sequence[float]) -> float:
    """Return the largest difference of any run's losses from ``curve``."""
    runs = [run for side in sides for run in side.runs]
    return max(abs(a - b) for run in runs for a, b in zip(run.losses, curve, strict=True))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns of text, the first flush left, the others right."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(
            value.ljust(width) if i == 0 else value.rjust(width)
            for i, (value, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "─" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join(lines)


def side_by_side(
    sides: Sequence[Side], *, pairs: int, tokens: int, flops: float, rate: Rate, device: str
) -> str:
    """Return a table with the programs as columns: seconds, rates and memory."""
    rows: list[list[str]] = []

    def row(name: str, values: Sequence[float | None], form: str) -> None:
        rows.append([name, *("" if value is None else format(value, form) for value in values)])

    for phase in ("prepare", "score", "train", "total"):
        seconds = [side.seconds(f"{phase}_s") or None for side in sides]
        name = "score and train" if phase == "total" else phase
        row(f"{name}: s", seconds, ".1f")
        row("  pairs/s", [pairs / s if s else None for s in seconds], ".1f")
    row("  steps and scoring alone", [side.seconds("alone_s") for side in sides], ".1f")
    total = [side.seconds("total_s") for side in sides]
    row("tokens/s, prompts once", [tokens / s for s in total], ",.0f")
    row("useful GFLOP/s", [flops / s / 1e9 for s in total], ",.0f")
    row("  of matrix products (MFU)", [flops / s / rate.wall for s in total], ".1%")
    row("process: s", [side.usage("wall_s") for side in sides], ".1f")
    row("  CPU s, imports apart", [side.cpu_s for side in sides], ".1f")
    row("peak RSS: MB", [side.usage("peak_bytes") / MB for side in sides], ",.0f")
    row("  net of imports", [side.usage("net_bytes") / MB for side in sides], ",.0f")
    if device != "cpu":
        kinds = {"peak device memory: MB": "allocated", "  reserved": "reserved"}
        for name, kind in kinds.items():
            row(name, [side.usage(f"device_{kind}_bytes") / MB for side in sides], ",.0f")
    return table(["", *(side.name for side in sides)], rows)


def ratios(ours: Side, theirs: Side, *, device: str) -> Mapping[str, float]:
    """Return the ratios of TRL's seconds and memory to this project's.

    Those of scoring and of training alone mean something where TRL scores first as well.
    """
    memory = {
        name: theirs.memory(device=device, net=net) / ours.memory(device=device, net=net)
        for name, net in (("memory_ratio", False), ("memory_ratio_net", True))
    }
    apart = {}
    if theirs.seconds("score_s"):
        apart = {
            f"{phase}_ratio": theirs.seconds(f"{phase}_s") / ours.seconds(f"{phase}_s")
            for phase in ("score", "train")
        }
    return {
        "time_ratio": theirs.seconds("total_s") / ours.seconds("total_s"),
        "alone_ratio": theirs.seconds("alone_s") / ours.seconds("alone_s"),
        **apart,
        "cpu_ratio": theirs.cpu_s / ours.cpu_s,
        "process_ratio": theirs.usage("wall_s") / ours.usage("wall_s"),
        **memory,
    }
