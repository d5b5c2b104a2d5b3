"""Define what every stage (a child process) is told."""

from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from sdpo.config import LaunchConfig, ModelConfig


class Spec(BaseModel):
    """A spec has this in common for all stages; ``name`` is that of its log and event files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uses_device: ClassVar[bool] = False
    """This says whether the stage computes with a model, and so needs the device to itself."""
    in_processes: ClassVar[bool] = False
    """This says whether the stage runs once for each of ``launch.processes``."""

    name: str
    run: Path
    model: ModelConfig
    launch: LaunchConfig

    @property
    def log(self) -> Path:
        """Return the file that the stage's own output goes to."""
        return self.run / "logs" / f"{self.name}.log"

    @property
    def elsewhere(self) -> tuple[Path, ...]:
        """Return the files and folders outside the run's folder that the stage writes results to.

        What is in the cache of log-probs is found by its name, and is none of these.
        """
        return ()

    @property
    def output(self) -> Path:
        """Return where the stage's results go: the place to name when a disk is full."""
        return self.run

    @property
    def events(self) -> Path:
        """Return the file that the stage's events go to."""
        return self.run / "logs" / f"{self.name}.events.jsonl"
