"""Run a stage on several nodes: ``python -m sdpo.processes.nodes STAGE.json``.

The chain starts this in place of the stage's own process, and it ends as that would: with its
events in the stage's file and its exit code.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from sdpo.config.nodes import Address
from sdpo.errors import UserError
from sdpo.events import ErrorEvent, EventWriter
from sdpo.processes.nodes import outlook
from sdpo.processes.nodes.head import Head, Outcome
from sdpo.processes.nodes.outlook import ByJob, ByPeople, BySrun, Outlook, member_command
from sdpo.processes.nodes.rendezvous import (
    SOCKET,
    launch_of,
    listener,
    slurm_address,
    takes_part,
)
from sdpo.processes.spec import Spec
from sdpo.processes.stage_specs import read_spec
from sdpo.processes.supervisor import PARENT, USER_ERROR_EXIT, die_with_parent
from sdpo.system.own_modules import module_path

_LEAVES_S = 5.0
"""Members end by themselves so long after a stage is over; then they are ended."""


@dataclass(slots=True)
class _Request:
    """The head is asked to stop by a signal."""

    is_made: bool = False

    def heed(self, _number: int, _frame: FrameType | None) -> None:
        self.is_made = True


def main() -> None:
    """Run the stage that the command line names on its nodes."""
    die_with_parent()
    request = _Request()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, request.heed)
    path = Path(sys.argv[1])
    spec = read_spec(path)
    events = EventWriter(spec.events)
    try:
        code = _run(spec, path, request, events)
    except UserError as error:
        events.emit(ErrorEvent(user=True, message=str(error)))
        code = USER_ERROR_EXIT
    sys.stdout.flush()
    os._exit(code)  # threads that read may still wait for the other side


def _run(spec: Spec, path: Path, request: _Request, events: EventWriter) -> int:
    while True:
        with _members(spec) as (server, coming):
            head = Head(spec, path, server=server, outlook=coming, asked=lambda: request.is_made)
            outcome = head.run()
        if not outcome.time_is_up or request.is_made:
            return outcome.code
        if fault := _no_progress(spec, outcome):
            events.emit(ErrorEvent(user=True, message=fault))
            return USER_ERROR_EXIT
        events.note(f"the time of the job of {spec.name} is up: another one goes on")


def _no_progress(spec: Spec, outcome: Outcome) -> str:
    """Return why another job would come no further; empty where it would."""
    if spec.launch.launcher != "slurm":
        return f"the time of a node's job was up in {spec.name}: start the nodes again, and resume"
    if outcome.saved:
        return ""
    return (
        f"{spec.name} saved no state within the time of its job, so that another one would come no "
        "further: raise launch.slurm.time, or lower training.checkpoint_minutes"
    )


@contextmanager
def _members(spec: Spec) -> Iterator[tuple[socket.socket, Outlook]]:
    """Have members come, as the launcher does it; yield where they come to, and what to expect."""
    launch = launch_of(spec)
    nodes = launch.nodes
    if launch.launcher == "torchrun":
        server = socket.socket(fileno=os.dup(int(os.environ[SOCKET])))
        address, own = Address(*server.getsockname()[:2]), takes_part(launch)
        with server, _own_member(address) if own else _nothing():
            yield server, ByPeople(address, own)
        return
    server, address = listener(slurm_address(launch), any_address=True)
    with server:
        if "SLURM_JOB_ID" in os.environ:
            command = outlook.srun_command(nodes, address)
            with _process(command) as process:
                yield server, BySrun(process=process)
        else:
            with _job(spec, nodes, address) as job:
                yield server, ByJob(job=job)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _own_member(address: Address) -> Iterator[None]:
    with _process([*member_command(address), "--own"]):
        yield


@contextmanager
def _process(command: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a command beside; it ends by itself soon after, or is ended."""
    environment = os.environ | module_path() | {PARENT: str(os.getpid())}
    command = [outlook.tool(command[0]), *command[1:]]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
    try:
        yield process
    finally:
        try:
            process.wait(_LEAVES_S)
        except subprocess.TimeoutExpired:
            process.terminate()


@contextmanager
def _job(spec: Spec, nodes: int, address: Address) -> Iterator[str]:
    """Submit a job for the stage; take it out of the queue at the end, where it is still there."""
    job = outlook.submit(
        launch_of(spec),
        nodes=nodes,
        name=f"sdpo-{spec.run.name}-{spec.name}",
        folder=spec.log.parent,
        rendezvous=address,
    )
    try:
        yield job
    finally:
        outlook.cancel(job)


if __name__ == "__main__":
    main()
