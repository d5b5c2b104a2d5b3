"""Define what a comparison is asked to do."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.measured import run_module
from benchmarks.ours import launch_config, training_config
from benchmarks.workload import Settings, Workload, read_workload
from sdpo.config import LaunchConfig, TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options say what is compared, where and how often.

    ``sizes``: TRL's pairs per device, none where TRL is left out; ``changes``: training settings
    that differ from the workload's. ``weights``, ``rows``: a real model's folder and a file of
    pairs, in place of random weights and drawn pairs.
    """

    folder: Path
    device: Literal["cpu", "cuda"]
    model: str
    lengths: tuple[str, ...]
    pairs: int
    batch_size: int
    repeat: int
    sizes: tuple[int, ...]
    threads: int
    seed: int
    changes: dict[str, str]
    weights: str = ""
    rows: str = ""
    max_length: int = 1024

    @property
    def launch(self) -> LaunchConfig:
        """Return settings that launch one process on the device."""
        return launch_config(device=self.device, threads=self.threads)

    def training(self, workload: Workload, **more: Any) -> TrainingConfig:
        """Return the settings that both sides train with, ``more`` in place of some."""
        return training_config(workload, **(self.changes | more))

    def below(self, name: str) -> "Options":
        """Return the same options with the folder ``name`` below their own."""
        return replace(self, folder=self.folder / name)

    def workload(self, name: str = "workload", /, **changes: Any) -> Workload:
        """Make a workload in a process of its own; ``changes``: settings in place of these."""
        on_cpu = self.device == "cpu"
        settings: dict[str, Any] = {
            "folder": str(self.folder / name),
            "model": self.model,
            "lengths": self.lengths[0],
            "pairs": self.pairs,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "device": self.device,
            "dtype": "float32" if on_cpu else "bfloat16",
            "weights": self.weights,
            "rows": self.rows,
            "max_length": self.max_length,
        }
        made = Settings(**(settings | changes))
        self.folder.mkdir(parents=True, exist_ok=True)
        run_module("benchmarks.workload", made.to_json(), log=self.folder / f"{name}.log")
        return read_workload(made.path)
