"""SLURM's own daemons on this machine, one node or two, for as long as a block lasts."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

_SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_START_S = 60
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=10
SlurmdParameters=config_overrides
"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster; its commands find it by their environment."""

    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """What lets SLURM's commands find it."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _SBIN}

    def call(self, *command: str, **more: str) -> str:
        """What a command of SLURM prints."""
        environment = os.environ | self.variables | more
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment, timeout=60
        )
        return done.stdout.strip()

    def submit(self, script: str, *, folder: Path) -> str:
        """The number of a job that runs this script from ``folder``."""
        path = folder / "job.sh"
        path.write_text(script, encoding="utf-8")
        return self.call("sbatch", "--parsable", f"--chdir={folder}", str(path))

    def state(self, job: str) -> str:
        """RUNNING, PENDING, COMPLETED, CANCELLED and so on."""
        shown = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)["JobState"]

    def wait_for(self, job: str, *states: str, seconds: float) -> str:
        """The first of these states that the job comes to."""
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < end, f"job {job} is {state} after {seconds:.0f} s"
            time.sleep(0.2)
        return state


@contextmanager
def slurm_cluster(folder: Path, *, nodes: int = 1) -> Iterator[Cluster]:
    """Start munged, slurmctld and a slurmd for each node; all of them end with the block."""
    for name in ("munged", "slurmctld", "slurmd", "sbatch"):
        if shutil.which(name, path=_SBIN) is None:
            pytest.skip(f"{name} is not installed (Debian: slurm-wlm, munge)")
    names = [f"node{number}" for number in range(1, nodes + 1)]
    for name in ("state", *(f"spool-{node}" for node in names)):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    conf = _CONF.format(
        host=host,
        user=psutil.Process().username(),
        ports=_free_ports(1),
        folder=folder,
    )
    for node, port in zip(names, _free_ports(nodes), strict=True):
        conf += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
        conf += f"CPUs={os.cpu_count()} State=UNKNOWN\n"
    conf += f"PartitionName=all Nodes={','.join(names)} Default=YES MaxTime=INFINITE State=UP\n"
    (folder / "slurm.conf").write_text(conf, encoding="utf-8")
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _SBIN}
    cluster, started = Cluster(folder), list[subprocess.Popen[bytes]]()
    munged = [
        *("munged", "--foreground", "--force", f"--key-file={key}"),
        *(f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "log-file")),
        f"--seed-file={folder}/munge.seed",
    ]
    try:
        daemons = [["slurmd", "-D", "-N", node] for node in names]
        for number, command in enumerate((munged, ["slurmctld", "-D"], *daemons)):
            with (folder / f"{Path(command[0]).name}-{number}.out").open("wb") as log:
                started.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
                )
            time.sleep(1)
        end = time.monotonic() + _START_S
        while _answer(cluster) != f"{nodes} idle":
            assert time.monotonic() < end, _answer(cluster)
            time.sleep(0.5)
        yield cluster
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()


def _answer(cluster: Cluster) -> str:
    try:
        return cluster.call("sinfo", "--noheader", "--format=%D %T")
    except subprocess.CalledProcessError as error:
        return str(error.stderr)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
