"""Make the workloads of the parts that run real stages, once, while the first parts compare.

As a part (``workloads``) it makes them; the other parts read what is there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import workload as bench
from benchmarks.gpu.findings import Finding, Settings
from benchmarks.workload import Workload, read_workload


@dataclass(frozen=True, slots=True)
class Wanted:
    """A wanted workload has one size for a GPU, and a tiny one."""

    model: str
    lengths: str
    pairs: int
    batch_size: int
    tiny_pairs: int
    tiny_batch_size: int
    tiny_lengths: str = "short"


WANTED = {
    "stage": Wanted("0.5B", "hh", pairs=96, batch_size=16, tiny_pairs=24, tiny_batch_size=4),
    "large": Wanted(
        "1B", "ultrafeedback-long", pairs=192, batch_size=32, tiny_pairs=16, tiny_batch_size=4
    ),
    "scarce": Wanted(
        "0.5B",
        "ultrafeedback-long",
        pairs=128,
        batch_size=128,
        tiny_pairs=64,
        tiny_batch_size=64,
        tiny_lengths="ultrafeedback",
    ),
}


def run(settings: Settings) -> Iterator[Finding]:
    """Make all of the workloads, and yield a line on each."""
    for name in WANTED:
        made = bench.make(_settings(settings, name))
        done = _folder(settings, name) / "ready"
        done.touch()
        yield Finding(
            what=f"workload {name}",
            seen=f"{made.settings.pairs} pairs of {made.settings.lengths} for a model of "
            f"{made.settings.shape.parameters / 1e6:,.1f}M random weights",
        )


def ready(settings: Settings, name: str) -> Workload:
    """Return a workload that was made.

    Raises:
        FileNotFoundError: it was not, or not whole.
    """
    folder = _folder(settings, name)
    if not (folder / "ready").exists():
        raise FileNotFoundError(f"the workload {name} was not made: see workloads.log")
    return read_workload(folder)


def _folder(settings: Settings, name: str) -> Path:
    return settings.path / "workloads" / name


def _settings(settings: Settings, name: str) -> bench.Settings:
    wanted, tiny = WANTED[name], settings.tiny
    return bench.Settings(
        folder=str(_folder(settings, name)),
        model="tiny" if tiny else wanted.model,
        lengths=wanted.tiny_lengths if tiny else wanted.lengths,
        pairs=wanted.tiny_pairs if tiny else wanted.pairs,
        batch_size=wanted.tiny_batch_size if tiny else wanted.batch_size,
        seed=settings.seed,
        device=settings.device,
        dtype="float32" if settings.device == "cpu" else "bfloat16",
    )
