"""Another node on this machine: a network namespace, a host name and device locks of its own."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from sdpo.config import LaunchConfig
from sdpo.config.running import LaunchStrategy
from sdpo.events import Listener, ResultEvent
from sdpo.processes.nodes.rendezvous import listening
from sdpo.processes.spec import Spec
from sdpo.processes.supervisor import run_stage

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class SecondNode:
    """A node called ``name``, in a namespace; it reaches this one at ``here``."""

    name: str
    here: str
    folder: Path

    @property
    def log(self) -> Path:
        """What `sdpo node join` says there."""
        return self.folder / "join.log"

    @contextmanager
    def joined(
        self,
        port: int,
        *,
        variables: Mapping[str, str] = {},
        root: Path = ROOT,
        hidden: Path | None = None,
        launcher: Sequence[str] | None = None,
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """`sdpo node join` of the project in ``root`` there, which is ended with the block.

        ``hidden`` is a folder that is not shared with that node. ``launcher`` starts it, an option
        of Python's with its arguments: then nothing but variables says where the run is.
        """
        join = [sys.executable, *(launcher or ()), "-m", "flows.cli.app", "node", "join"]
        join += ["--rendezvous", f"{self.here}:{port}"] if launcher is None else []
        environment = os.environ | {"PYTHONPATH": str(root), "SDPO_LOCK_DIR": str(self.folder)}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(join, hidden=hidden),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | variables,
                cwd=root,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(30)

    def launch(self, port: int, *, strategy: LaunchStrategy = "ddp") -> LaunchConfig:
        """The settings of a launch of two processes, one on this node and one there."""
        return LaunchConfig(
            processes=2,
            nodes=2,
            launcher="torchrun",
            rendezvous=f"{self.here}:{port}",
            strategy=strategy,
            device="cpu",
            threads=1,
        )

    def run_stage(self, spec: Spec, port: int, listen: Listener) -> ResultEvent:
        """Run a stage on both nodes."""
        with self.joined(port), listening(spec.launch) as door:
            return run_stage(spec, listen=listen, rendezvous=door)

    def command(self, command: list[str], *, hidden: Path | None = None) -> list[str]:
        """A command that runs on this node; its process is the command's own."""
        hide = f"mount -t tmpfs none {shlex.quote(str(hidden))}; " if hidden else ""
        before = f'hostname {self.name}; {hide}exec "$@"'
        there = ["nsenter", f"--net=/run/netns/{self.name}", "unshare", "--uts", "--mount"]
        return [*there, "sh", "-c", before, "sh", *command]

    def processes(self) -> list[psutil.Process]:
        """Everything that runs in the namespace."""
        wanted = Path(f"/run/netns/{self.name}").stat().st_ino
        found = []
        for process in psutil.process_iter():
            with suppress(OSError):
                if Path(f"/proc/{process.pid}/ns/net").stat().st_ino == wanted:
                    found.append(process)
        return found

    def sent_bytes(self) -> int:
        """What has left that node through its network interface so far."""
        counter = "/sys/class/net/inside/statistics/tx_bytes"
        told = ["nsenter", f"--net=/run/netns/{self.name}", "unshare", "--mount", "sh", "-c"]
        there = subprocess.run(
            [*told, f"mount -t sysfs none /sys; cat {counter}"],
            check=True,
            capture_output=True,
            text=True,
        )
        return int(there.stdout)

    def cut(self) -> None:
        """No packet comes through any more, in either direction, and nobody is told."""
        run("ip", "-n", self.name, "link", "set", "inside", "down")

    def mend(self) -> None:
        """Packets come through again."""
        run("ip", "-n", self.name, "link", "set", "inside", "up")


def free_port() -> int:
    """A port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def second_node(folder: Path) -> Iterator[SecondNode]:
    """A node beside this one, with its own folder; skips where namespaces cannot be made."""
    if os.geteuid() or any(shutil.which(tool) is None for tool in ("ip", "nsenter", "unshare")):
        pytest.skip("network namespaces need root, iproute2 and util-linux")
    number = os.getpid() % 16000
    name, net = f"node-{number}", f"10.{77 + number // 4000}.{number // 64 % 250}.{number % 64 * 4}"
    stem, last = net.rsplit(".", 1)
    here, there = f"{stem}.{int(last) + 1}", f"{stem}.{int(last) + 2}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    try:
        link = f"sdpo{number}"
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "inside", "netns", name)
        run("ip", "address", "add", f"{here}/30", "dev", link)
        run("ip", "link", "set", link, "up")
        run("ip", "-n", name, "address", "add", f"{there}/30", "dev", "inside")
        run("ip", "-n", name, "link", "set", "inside", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield SecondNode(name, here, folder)
    finally:
        run("ip", "netns", "delete", name)


def run(*command: str) -> None:
    """Run a command that has to work."""
    subprocess.run(command, check=True, capture_output=True)
