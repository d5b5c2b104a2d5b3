"""Define the settings of nodes: on how many machines a stage trains, and who starts it there."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from sdpo.config.annotations import Unit
from sdpo.config.group import Group

Launcher = Literal["local", "torchrun", "slurm"]
SLURM_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")
"""Times as sbatch has them: minutes, hours:minutes:seconds, days-hours and so on."""
_WORD = re.compile(r"[\w.,:+=@%/-]+")
_OPTION = re.compile(r"--?[A-Za-z][\w-]*(=[^\n\r]*|\s[^\n\r]*)?")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[\w.-]+):(\d{1,5})")


class SlurmConfig(Group):
    """These settings say what a job of SLURM asks for; what is empty is left to the cluster."""

    main_setting = "partition"

    partition: str = Field("", description="Partition of the jobs.")
    account: str = Field("", description="Account that the jobs are charged to.")
    time: str = Field(
        "", title="Time of a job", description="Time of one job as sbatch has it: 4:00:00, 1-12."
    )
    gpus_per_node: Annotated[int, Unit("devices")] = Field(
        0, ge=0, description="GPUs of each node; 0: one for each process there, none on a CPU."
    )
    extra: list[str] = Field([], description="Further options of sbatch, as `--qos=high`.")


@dataclass(frozen=True, slots=True)
class Address:
    """An address is a host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address_of(text: str) -> Address | None:
    """Return the address in a text as HOST:PORT, an IPv6 host in brackets; None: it is none."""
    found = _ADDRESS.fullmatch(text)
    if not found or not 1 <= int(found[2]) <= 65535:
        return None
    return Address(found[1].strip("[]"), int(found[2]))


def impossible_slurm(slurm: SlurmConfig, *, named: str = "launch.slurm.{}") -> list[str]:
    """Name what cannot be a value or an option in a line of a batch script.

    ``named`` is how a person has given a setting, ``{}`` its name.
    """
    problems = [
        f"{named.format(name)} {value!r} cannot be a name: it has blanks or quotes in it"
        for name, value in (("partition", slurm.partition), ("account", slurm.account))
        if value and not _WORD.fullmatch(value)
    ]
    if slurm.time and not SLURM_TIME.fullmatch(slurm.time):
        problems.append(
            f"{named.format('time')} {slurm.time!r} is no time of sbatch: write minutes, "
            "hours:minutes:seconds or days-hours, as 4:00:00 or 1-12"
        )
    return problems + [
        f"{named.format('extra')} {option!r} is no option of sbatch: write it as there, as "
        "--qos=high"
        for option in slurm.extra
        if not _OPTION.fullmatch(option)
    ]
