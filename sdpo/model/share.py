"""Divide work that falls into independent parts among the processes of a stage.

Each process holds the whole model on its own device, does its share, and writes it down in a file
of its own. Nothing is exchanged but the word that all are done, and what they have written, so that
what comes out does not depend on how many there were. They may be on several nodes.

Processes that train together tell each other by the same words what is no tensor.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from sdpo.config import LaunchConfig
from sdpo.errors import Fault
from sdpo.system.seen import as_here, see

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
_PATIENCE = timedelta(hours=12)
"""The others wait this long for the last one: shares of documents differ in length."""


@dataclass(frozen=True, slots=True)
class Share:
    """Process ``rank`` of ``count`` has the parts ``rank``, ``rank + count`` and so on."""

    rank: int = 0
    count: int = 1

    def has(self, number: int) -> bool:
        """Return whether part ``number`` is this process's."""
        return number % self.count == self.rank

    @property
    def is_first(self) -> bool:
        """Return whether this process puts together what all have done."""
        return self.rank == 0

    @property
    def told(self) -> str:
        """Return whose work a progress is of, for a person; empty where there is one process."""
        return f"process {self.rank + 1} of {self.count}" if self.count > 1 else ""

    def named(self, name: str) -> str:
        """Return ``name.ending`` for the first process, ``name-<rank>.ending`` for others."""
        stem, dot, ending = name.rpartition(".")
        return name if self.is_first else f"{stem}-{self.rank}{dot}{ending}"

    def wait(self) -> None:
        """Wait until every process has come here."""
        self.of_all(None)

    def of_first(self, value: T) -> T:
        """Return the first process's value, which all go by: others may see files later.

        All processes call this.
        """
        if self.count == 1:
            return value
        told = [value]
        torch.distributed.broadcast_object_list(told)
        return told[0]

    def of_all(self, value: T) -> list[T]:
        """Return the value of each process, in their order. All processes call this."""
        if self.count == 1:
            return [value]
        told = [value] * self.count
        torch.distributed.all_gather_object(told, value)
        return told

    def see_as_first(self, paths: Iterable[Path]) -> None:
        """Wait on every process until it sees those of ``paths`` that the first one sees.

        One that saw less would take another way through the stage than the rest. All call this.

        Raises:
            Fault: one does not see a file.
        """
        if self.count > 1:
            there = [path for path in paths if path.exists()] if self.is_first else []
            see(self.of_first([file for path in there for file in as_here(path)]))

    def seen_by_all(self, mine: Sequence[Path]) -> list[Path]:
        """Return what all processes have written, ``mine`` here, once each sees all of it.

        All processes call this, and none goes on to write before the last one has seen.

        Raises:
            Fault: one does not see a file.
        """
        if self.count == 1:
            return list(mine)
        files = list(chain.from_iterable(self.of_all([f for path in mine for f in as_here(path)])))
        see(files)
        self.wait()
        return [file.path for file in files]


def share_of(accelerator: "Accelerator") -> Share:
    """Return which of the processes that train together this one is."""
    return Share(accelerator.process_index, accelerator.num_processes)


def join(launch: LaunchConfig) -> tuple[Share, torch.device]:
    """Return this process's share of a stage's work, and the device that it computes on.

    Raises:
        Fault: the processes did not find each other.
    """
    torch.set_num_threads(launch.threads)
    count, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if count != launch.processes:
        raise Fault(f"this stage wants {launch.processes} processes and is one of {count}")
    if count > 1:
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    if launch.device == "cpu":
        return Share(rank, count), torch.device("cpu")
    device = torch.device(launch.device, int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return Share(rank, count), device
