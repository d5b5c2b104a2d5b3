"""Run a trial as a process of its own, ``python -m sdpo.study.arm_process TRIAL.json``.

It is told the recipe and where to write its events, and brings the run to its end as ``sdpo run``
does. Whoever started it can ask it to stop, as by Ctrl-C; with the process that started it it ends.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil
from pydantic import BaseModel, ConfigDict

from partitions import PartitionError
from sdpo.chain.run_chain import run_chain
from sdpo.config import RunConfig
from sdpo.errors import Fault, Interrupted, SdpoError, UserError
from sdpo.events import ErrorEvent, EventReader, EventWriter, Listener
from sdpo.hooks import Host
from sdpo.processes.supervisor import PARENT, die_with_parent
from sdpo.store.run_file import Origin
from sdpo.system.files import write_text
from sdpo.system.interrupts import GRACE_S
from sdpo.system.own_modules import module_path
from sdpo.system.streams import make_lasting
from sdpo.system.swallowed import send_again
from sdpo.system.watchdog import MARK, send, watched

_POLL_S = 0.1
_TO_END_S = 2 * GRACE_S
"""A trial that was asked to stop ends its stage first, which may take as long as a stage may."""
_INTERRUPTED = 130


class TrialSpec(BaseModel):
    """A trial's process is told this: the recipe, with what it shares, and the file of its events.

    ``wait``: another process that works on the run is waited for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: RunConfig
    origin: Origin | None
    wait: bool
    events: Path


def run_apart(
    spec: TrialSpec,
    *,
    listen: Listener,
    variables: Mapping[str, str],
    keep: Sequence[int],
    alone: AbstractContextManager[object],
    stop: threading.Event,
) -> None:
    """Run a trial in a process of its own, and hear of it until it ends.

    ``variables`` are added to its environment, ``keep`` are descriptors of locks that it holds as
    well. It is started within ``alone``, in which no other thread changes what it inherits.
    ``stop`` asks it to stop; also otherwise nothing of it is left afterwards.

    Raises:
        UserError: the trial refused what the user gave.
        Interrupted: it was asked to stop.
        Fault: it failed; the message is its own.
    """
    name, log, mark = spec.config.name, spec.events.with_suffix(".log"), uuid.uuid4().hex
    reader, errors = EventReader(spec.events), list[ErrorEvent]()
    with watched(mark, keep=keep):
        with alone:
            process = _started(spec, log, {**variables, MARK: mark}, keep)
        try:
            while process.poll() is None and not stop.is_set():
                _hear(reader, listen, errors)
                time.sleep(_POLL_S)
        finally:
            _end(process)
        _hear(reader, listen, errors)
    if process.returncode == _INTERRUPTED or stop.is_set():
        raise Interrupted(f"{name} was asked to stop")
    if errors:
        raise (UserError if errors[-1].user else Fault)(errors[-1].message)
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise Fault(f"{name} ended with exit code {process.returncode}: {''.join(last)}")


def _started(
    spec: TrialSpec, log: Path, variables: Mapping[str, str], keep: Sequence[int]
) -> "subprocess.Popen[bytes]":
    told = spec.events.with_suffix(".json")
    write_text(told, spec.model_dump_json())
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "sdpo.study.arm_process", str(told)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | module_path() | dict(variables) | {PARENT: str(os.getpid())},
            pass_fds=tuple(keep),
        )


def _hear(reader: EventReader, listen: Listener, errors: list[ErrorEvent]) -> None:
    for event in reader.read():
        if isinstance(event, ErrorEvent):
            errors.append(event)
        else:
            listen(event)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask a trial's process to stop; kill it and what it started where it does not."""
    if process.poll() is not None:
        return
    leader = psutil.Process(process.pid)
    send(leader, signal.SIGTERM)
    try:
        process.wait(_TO_END_S)
    except subprocess.TimeoutExpired:
        for member in [*leader.children(recursive=True), leader]:
            send(member, signal.SIGKILL)
        process.wait()


def _terminate(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted("terminated")


def _signal_of(error: BaseException) -> int:
    return signal.SIGTERM if isinstance(error, Interrupted) else 0


def main() -> None:
    """Run the trial that the command line names, and tell what came of it by its events."""
    make_lasting()
    signal.signal(signal.SIGTERM, _terminate)
    die_with_parent()
    send_again(_signal_of)
    spec = TrialSpec.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    events = EventWriter(spec.events)
    try:
        run_chain(spec.config, host=Host(listen=events.emit), origin=spec.origin, wait=spec.wait)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)
    except (SdpoError, PartitionError, OSError) as error:
        message = str(error) or type(error).__name__
        events.emit(ErrorEvent(user=isinstance(error, UserError | PartitionError), message=message))
        sys.exit(1)


if __name__ == "__main__":
    main()
