"""Run the processes of a stage on one node: start them, pass on what they tell, end them."""

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import AbstractContextManager
from pathlib import Path

import psutil

from sdpo.processes.nodes.words import Ended, Start, Work
from sdpo.processes.spec import Spec
from sdpo.processes.supervisor import EVENTS, PARENT, never_through_a_link, stage_environment
from sdpo.system.interrupts import GRACE_S
from sdpo.system.watchdog import MARK, marked, send, watched


def node_log(spec: Spec, node: int) -> Path:
    """Return the log of a stage's processes on a node; the first one's is the stage's."""
    return spec.log if node == 0 else spec.log.with_name(f"{spec.name}.node-{node}.log")


class Ranks:
    """Ranks are a stage's processes on this node, between :meth:`start` and their end."""

    def __init__(self, spec: Spec, work: Work, *, address: str, events: Path) -> None:
        self._spec, self._work, self._address, self._events = spec, work, address, events
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._mark = uuid.uuid4().hex
        self._first_bad: Ended | None = None
        self._kill_at_s: float | None = None

    def watched(self) -> AbstractContextManager[None]:
        """Let the death of this process, while within, end those that it started."""
        return watched(self._mark)

    def start(self, start: Start) -> None:
        """Start every process of this node."""
        environment = stage_environment(self._spec)
        environment |= {MARK: self._mark, PARENT: str(os.getpid()), EVENTS: str(self._events)}
        interface = _interface_of(self._address)
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            if interface and name not in environment:
                environment[name] = interface
        log = node_log(self._spec, self._work.node)
        with open(log, "ab", opener=never_through_a_link) as output:
            for local in range(self._work.per_node):
                self._processes[self._work.node * self._work.per_node + local] = subprocess.Popen(
                    [sys.executable, "-m", "sdpo.stages", str(self._work.spec)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=environment | self._place(local, start),
                )

    def _place(self, local: int, start: Start) -> dict[str, str]:
        """Return the variables that tell a process its place, as torchrun has them."""
        work = self._work
        if work.nodes * work.per_node == 1:
            return {}
        values = {
            "RANK": work.node * work.per_node + local,
            "LOCAL_RANK": local,
            "WORLD_SIZE": work.nodes * work.per_node,
            "LOCAL_WORLD_SIZE": work.per_node,
            "GROUP_RANK": work.node,
            "GROUP_WORLD_SIZE": work.nodes,
            "MASTER_ADDR": start.address,
            "MASTER_PORT": start.port,
        }
        return {name: str(value) for name, value in values.items()}

    def stop(self) -> None:
        """Ask all processes to end; those that have not after the grace time are killed."""
        if self._kill_at_s is None:
            self._kill_at_s = time.monotonic() + GRACE_S
            for process in self._family():
                send(process, signal.SIGTERM)

    def ended(self) -> Ended | None:
        """Return how the processes ended, once all have; one that failed ends the others."""
        for rank, process in self._processes.items():
            code = process.poll()
            if code and self._first_bad is None:
                killed = code == -signal.SIGKILL and self._kill_at_s is None
                self._first_bad = Ended(code=code, killed=rank if killed else None)
                self.stop()
        if self._kill_at_s is not None and time.monotonic() > self._kill_at_s:
            for left in self._family():
                send(left, signal.SIGKILL)
        if any(process.poll() is None for process in self._processes.values()):
            return None
        return self._first_bad or Ended(code=0)

    def end(self) -> None:
        """End what is left, waiting no longer than the grace time."""
        self.stop()
        while self.ended() is None:
            time.sleep(0.05)
        for left in self._family():
            send(left, signal.SIGKILL)

    def _family(self) -> list[psutil.Process]:
        return marked(self._mark)


def _interface_of(address: str) -> str:
    """Return the name of the network interface that has an address; empty: none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == address for each in addresses):
            return name
    return ""
