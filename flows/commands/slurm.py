"""Write a batch script for SLURM that runs a recipe on its nodes, over as many jobs as it takes.

SLURM tells the script some minutes before its time is up; the run then saves its state and ends,
and the job is put back into the queue, where it goes on. A job that somebody cancels is not.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdpo.config import RunConfig
from sdpo.config.nodes import SlurmConfig, impossible_slurm
from sdpo.errors import ConfigError
from sdpo.processes.nodes.outlook import EARLY_S

_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job asks for this: empty fields leave it to the cluster's defaults.

    ``gpus``, of each node: None asks for as many as it has processes, unless it is for a CPU.
    ``time`` as sbatch has it. ``extra``: further options of sbatch.
    """

    partition: str = ""
    account: str = ""
    time: str = ""
    gpus: int | None = None
    extra: Sequence[str] = ()

    def or_as(self, slurm: SlurmConfig) -> "Job":
        """Return the job with what it leaves open as the recipe has it."""
        return replace(
            self,
            partition=self.partition or slurm.partition,
            account=self.account or slurm.account,
            time=self.time or slurm.time,
            gpus=(slurm.gpus_per_node or None) if self.gpus is None else self.gpus,
            extra=[*slurm.extra, *self.extra],
        )


def batch_script(config: RunConfig, arguments: Sequence[str], job: Job, *, folder: Path) -> str:
    """Return the script that runs ``sdpo run`` with these ``arguments`` from ``folder``.

    Raises:
        ConfigError: an option cannot be one of sbatch's.
    """
    _check(job)
    launch = config.launch
    job = job.or_as(launch.slurm)
    gpus = job.gpus
    if gpus is None:
        gpus = 0 if launch.device == "cpu" else launch.per_node
    if launch.launcher == "torchrun":  # the nodes are those of the job, where srun reaches them
        arguments = [*arguments, "--set", "launch.launcher=slurm"]
    options = {
        "job-name": f"sdpo-{config.name}",
        "nodes": str(launch.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(launch.threads * launch.per_node) if launch.threads else "",
        "gpus-per-node": str(gpus) if gpus else "",
        "partition": job.partition,
        "account": job.account,
        "time": job.time,
        "signal": f"B:USR1@{EARLY_S}",
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
    given = SlurmConfig(
        partition=job.partition, account=job.account, time=job.time, extra=list(job.extra)
    )
    if problems := impossible_slurm(given, named="--{}"):
        raise ConfigError(problems[0])
