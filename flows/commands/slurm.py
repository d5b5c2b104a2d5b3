"""Write a batch script for SLURM that runs a recipe on one node, over as many jobs as it takes.

SLURM tells the script some minutes before its time is up; the run then saves its state and ends,
and the job is put back into the queue, where it goes on. A job that somebody cancels is not.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo.config import RunConfig
from sdpo.errors import ConfigError

_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")
_WORD = re.compile(r"[\w.,:+=@%/-]+")
_INTERRUPTED = 130
_EARLY_S = 120
"""SLURM tells so many seconds before the end: a step may run meanwhile, and its state is saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job asks for this: empty fields leave it to the cluster's defaults.

    ``gpus``: None asks for as many as the recipe has processes, unless it is for a CPU. ``time``
    as sbatch has it. ``extra``: further options of sbatch.
    """

    partition: str = ""
    account: str = ""
    time: str = ""
    gpus: int | None = None
    extra: Sequence[str] = ()


def batch_script(config: RunConfig, arguments: Sequence[str], job: Job, *, folder: Path) -> str:
    """Return the script that runs ``sdpo run`` with these ``arguments`` from ``folder``.

    Raises:
        ConfigError: an option cannot be one of sbatch's.
    """
    _check(job)
    launch = config.launch
    gpus = job.gpus
    if gpus is None:
        gpus = 0 if launch.device == "cpu" else launch.processes
    options = {
        "job-name": f"sdpo-{config.name}",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(launch.threads * launch.processes) if launch.threads else "",
        "gpus-per-node": str(gpus) if gpus else "",
        "partition": job.partition,
        "account": job.account,
        "time": job.time,
        "signal": f"B:USR1@{_EARLY_S}",
        "output": "%x-%j.log",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    lines += ["#SBATCH --requeue", "#SBATCH --open-mode=append"]
    lines += [f"#SBATCH {option}" for option in job.extra]
    command = shlex.join([sys.executable, "-m", "flows.cli.app", "run", *arguments])
    return _SCRIPT.format(
        options="\n".join(lines),
        folder=shlex.quote(str(folder)),
        command=command,
        interrupted=_INTERRUPTED,
    )


_SCRIPT = """\
#!/bin/bash
{options}

cd {folder} || exit 1
{command} &
run=$!

# Before its time is up the run saves its state and ends; then the job goes back into the queue.
time_is_up=
trap 'time_is_up=yes; kill -TERM "$run" 2> /dev/null' USR1
trap 'kill -TERM "$run" 2> /dev/null' TERM INT

wait "$run"
while kill -0 "$run" 2> /dev/null; do  # a signal has ended the waiting, and not the run
    wait "$run"
done
wait "$run"  # its own exit code, also where it ended while a signal was heeded
code=$?
if [ -n "$time_is_up" ] && [ "$code" -eq {interrupted} ]; then
    scontrol requeue "$SLURM_JOB_ID" && sleep 60  # the queue ends this script
fi
exit "$code"
"""


def _check(job: Job) -> None:
    """Refuse what would be something else than a value in a line of the script."""
    for name, value in (("--partition", job.partition), ("--account", job.account)):
        if value and not _WORD.fullmatch(value):
            raise ConfigError(f"{name} {value!r} cannot be a name: it has blanks or quotes in it")
    if job.time and not _TIME.fullmatch(job.time):
        raise ConfigError(
            f"--time {job.time!r} is no time of sbatch: write minutes, hours:minutes:seconds or "
            "days-hours, as 4:00:00 or 1-12"
        )
    for option in job.extra:
        if not re.fullmatch(r"--?[A-Za-z][\w-]*(=[^\n\r]*|\s[^\n\r]*)?", option):
            raise ConfigError(
                f"--extra {option!r} is no option of sbatch: write it as there, as --qos=high"
            )
