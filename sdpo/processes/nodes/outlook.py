"""Say whether the members of a stage will come: people start them, srun does, or a job of SLURM."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sdpo.config import LaunchConfig
from sdpo.config.nodes import Address
from sdpo.errors import UserError
from sdpo.events import ErrorEvent
from sdpo.system.own_modules import module_path

_LOOK_S = 3.0
_PATIENCE_S = 60
EARLY_S = 120
"""SLURM tells so many seconds before the end: a step may run meanwhile, and its state is saved."""
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "RESIZING")
_MEMBER = "sdpo.processes.nodes.member"


class Failed(Exception):
    """A stage cannot go on: this is the event that says why, and the exit code."""

    def __init__(self, event: ErrorEvent, code: int = 1) -> None:
        super().__init__(event.message)
        self.event, self.code = event, code


class Outlook(Protocol):
    """An outlook tells of members that are to come."""

    @property
    def own(self) -> bool:
        """Return whether one of them is this machine's."""

    @property
    def is_fixed(self) -> bool:
        """Return whether no other one follows where one of them is refused."""

    def message(self, here: int, nodes: int) -> str:
        """Return what is waited for, where ``here`` of ``nodes`` have come.

        Raises:
            Failed: the others will not come.
        """


@dataclass(frozen=True, slots=True)
class ByPeople:
    """Whoever runs ``sdpo node join`` brings a member; a launcher may do that."""

    rendezvous: Address
    own: bool
    is_fixed: bool = False

    def message(self, here: int, nodes: int) -> str:
        """Return what a person does on the other nodes."""
        return (
            f"waiting for nodes: {here} of {nodes} are here; run `sdpo node join --rendezvous "
            f"{self.rendezvous}` on each of the others"
        )


def member_command(rendezvous: Address) -> list[str]:
    """Return the command that is a member of one stage."""
    return [sys.executable, "-m", _MEMBER, "--rendezvous", str(rendezvous)]


@dataclass(slots=True, kw_only=True)
class BySrun:
    """Within an allocation srun brings a member on each of its nodes."""

    process: "subprocess.Popen[bytes]"
    own: bool = False
    is_fixed: bool = True

    def message(self, here: int, nodes: int) -> str:
        """Return what srun is doing."""
        if self.process.poll() is not None and here < nodes:
            raise Failed(
                ErrorEvent(
                    user=False,
                    message=f"srun ended with exit code {self.process.returncode} before all "
                    f"{nodes} nodes had come: {here} had",
                )
            )
        return f"waiting for nodes: srun has brought {here} of {nodes}"


def srun_command(nodes: int, rendezvous: Address) -> list[str]:
    """Return the srun that brings a member on each of ``nodes`` of this allocation."""
    cpus = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"),
        *("--kill-on-bad-exit=0", "--overlap", "--cpu-bind=none"),
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        *member_command(rendezvous),
    ]


@dataclass(slots=True, kw_only=True)
class ByJob:
    """Outside an allocation a job that was submitted brings the members once it runs."""

    job: str
    own: bool = False
    is_fixed: bool = True
    _said: str = ""
    _looked_s: float = field(default=0.0)
    _gone_s: float = field(default=0.0)

    def message(self, here: int, nodes: int) -> str:
        """Return where the job is."""
        now = time.monotonic()
        if now > self._looked_s + _LOOK_S:
            self._looked_s = now
            state, reason = job_state(self.job)
            if state and state not in (*_WAITING, "RUNNING"):
                raise Failed(
                    ErrorEvent(user=False, message=f"job {self.job} is {state} ({reason})")
                )
            self._gone_s = self._gone_s or now if not state else 0.0
            if not state and now > self._gone_s + _PATIENCE_S / 2:
                raise Failed(
                    ErrorEvent(
                        user=False,
                        message=f"job {self.job} has ended before all {nodes} nodes had come",
                    )
                )
            why = f" ({reason})" if state in _WAITING and reason not in ("", "None") else ""
            self._said = f"job {self.job} is {state or 'ending'}{why}"
        return f"waiting for nodes: {self._said}; {here} of {nodes} are here"


def job_state(job: str) -> tuple[str, str]:
    """Return the state of a job and its reason; empty where SLURM knows it no more."""
    asked = _call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r")
    state, _, reason = asked.partition("|")
    return state, reason


def submit(
    launch: LaunchConfig, *, nodes: int, name: str, folder: Path, rendezvous: Address
) -> str:
    """Submit a job that brings a member on each of its nodes, and return its number.

    Its output goes to ``folder``.

    Raises:
        UserError: SLURM does not take it.
    """
    script = job_script(launch, nodes=nodes, name=name, folder=folder, rendezvous=rendezvous)
    done = subprocess.run(
        [tool("sbatch"), "--parsable"],
        input=script,
        text=True,
        capture_output=True,
        check=False,
        env=os.environ | module_path(),
    )
    number = done.stdout.strip().split(";")[0]
    if done.returncode or not re.fullmatch(r"\d+", number):
        raise UserError(f"sbatch does not take the stage's job: {done.stderr.strip()}")
    return number


def job_script(
    launch: LaunchConfig, *, nodes: int, name: str, folder: Path, rendezvous: Address
) -> str:
    """Return the batch script of a job for a stage; its steps are told before its time is up."""
    slurm = launch.slurm
    gpus = slurm.gpus_per_node or (0 if launch.device == "cpu" else launch.per_node)
    options = {
        "job-name": name,
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(launch.threads * launch.per_node) if launch.threads else "",
        "gpus-per-node": str(gpus) if gpus else "",
        "partition": slurm.partition,
        "account": slurm.account,
        "time": slurm.time,
        "signal": f"USR1@{EARLY_S}",
        "output": f"{folder}/slurm-%j.log",
    }
    lines = [f"#SBATCH --{option}={value}" for option, value in options.items() if value]
    lines += ["#SBATCH --no-requeue", *(f"#SBATCH {option}" for option in slurm.extra)]
    command = shlex.join(
        [
            *("srun", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=0"),
            *("--cpu-bind=none", *member_command(rendezvous)),
        ]
    )
    return "\n".join(["#!/bin/bash", *lines, "", f"exec {command}", ""])


def cancel(job: str) -> None:
    """Take a job out of the queue, or end it."""
    _call("scancel", job)


def _call(*command: str) -> str:
    done = subprocess.run(
        [tool(command[0]), *command[1:]], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout.strip()


def tool(name: str) -> str:
    """Return the path of a command.

    Raises:
        UserError: it is not there.
    """
    found = shutil.which(name)
    if found is None:
        raise UserError(
            f"{name} is not found: launch.launcher slurm needs SLURM's commands on this machine"
        )
    return found
