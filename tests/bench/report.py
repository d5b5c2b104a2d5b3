"""Medians of repeated runs, ratios between them, and the tables that show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.ours import Measurement

MB = 1e6


@dataclass(frozen=True, slots=True)
class Side:
    """All runs of one program."""

    name: str
    runs: Sequence[Measurement]

    def seconds(self, phase: str) -> float:
        """Median of ``score_s``, ``train_s`` or ``total_s``."""
        return median(getattr(run, phase) for run in self.runs)

    def phase(self, name: str) -> float:
        """Median seconds of a phase by its own name."""
        return median(run.seconds.get(name, 0.0) for run in self.runs)

    def usage(self, name: str) -> float:
        """Median of a field of :class:`~tests.bench.measured.Usage`."""
        return median(getattr(run.usage, name) for run in self.runs)

    @property
    def cpu_s(self) -> float:
        """Median CPU seconds of the process, importing apart."""
        return self.usage("cpu_s") - self.usage("imports_cpu_s")

    def memory(self, *, device: str, net: bool = False) -> float:
        """Median peak bytes: of the device where there is one, else of the process."""
        if device != "cpu":
            return self.usage("device_allocated_bytes")
        return self.usage("net_bytes" if net else "peak_bytes")


def loss_difference(sides: Sequence[Side], reference: Side) -> float:
    """Largest difference of any run's loss curve from the reference's first."""
    curve = reference.runs[0].losses
    return max(
        abs(a - b)
        for side in sides
        for run in side.runs
        for a, b in zip(run.losses, curve, strict=True)
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of text, the first flush left, the others right."""
    cells = [[str(value) for value in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(
            value.ljust(width) if i == 0 else value.rjust(width)
            for i, (value, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def trainers_table(
    sides: Sequence[Side], *, pairs: int, flops: float, peak: float, device: str
) -> str:
    """Seconds, rates and memory of every program."""
    rows = []
    for side in sides:
        score, train, total = (side.seconds(n) for n in ("score_s", "train_s", "total_s"))
        rows.append(
            [
                side.name,
                f"{score:.1f}",
                f"{_rate(pairs, score)}",
                f"{train:.1f}",
                f"{_rate(pairs, train)}",
                f"{total:.1f}",
                f"{_rate(pairs, total)}",
                f"{side.cpu_s:.1f}",
                f"{side.usage('wall_s'):.1f}",
                f"{side.memory(device=device) / MB:,.0f}",
                f"{side.memory(device=device, net=True) / MB:,.0f}",
                f"{flops / total / 1e9:,.0f}",
                f"{flops / total / peak:.1%}",
            ]
        )
    columns = ["", "score s", "pairs/s", "train s", "pairs/s", "both s", "pairs/s", "CPU s"]
    columns += ["process s", "peak MB", "net MB", "GFLOP/s", "of peak"]
    return table(columns, rows)


def _rate(pairs: int, seconds: float) -> str:
    return f"{pairs / seconds:.1f}" if seconds else ""


def ratios(ours: Side, theirs: Side, *, device: str) -> Mapping[str, float]:
    """TRL over this project."""
    return {
        "time": theirs.seconds("total_s") / ours.seconds("total_s"),
        "cpu": theirs.cpu_s / ours.cpu_s,
        "process": theirs.usage("wall_s") / ours.usage("wall_s"),
        "memory": theirs.memory(device=device) / ours.memory(device=device),
        "memory_net": theirs.memory(device=device, net=True) / ours.memory(device=device, net=True),
    }
