"""Be a node of a run's stages: ``sdpo node join``, and what a head starts on its own machine.

A member waits at the rendezvous for a stage, does its share of it, and waits for the next one,
until nobody listens there any more. It stops what it runs when the head says so, when nothing is
heard of the head, or when it is asked to end itself.
"""

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

from sdpo.config.nodes import Address, address_of
from sdpo.errors import InUseError
from sdpo.events import EventReader, EventWriter, WaitEvent
from sdpo.processes.devices import hold_devices
from sdpo.processes.nodes.line import Box, Line, LineError
from sdpo.processes.nodes.meeting import Meeting, met, node_name
from sdpo.processes.nodes.needed_files import look_of, written_since
from sdpo.processes.nodes.ranks import Ranks
from sdpo.processes.nodes.words import (
    BEAT_S,
    Alive,
    Ended,
    Leaving,
    Over,
    Ready,
    Refused,
    Start,
    Stop,
    Told,
    Word,
)
from sdpo.processes.stage_specs import read_spec
from sdpo.processes.supervisor import die_with_parent
from sdpo.system.seen import unseen

INTERRUPTED = 130
_TRY_S = 1.0
_TICK_S = 0.1


@dataclass(slots=True)
class Asked:
    """A member was asked to end by a signal, or by the end of its job's time; empty: it was not."""

    why: Literal["", "signal", "time"] = ""

    def listen(self) -> None:
        """Heed SIGTERM and SIGINT, and SIGUSR1, by which SLURM tells that time is up."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._heed)

    def _heed(self, number: int, _frame: FrameType | None) -> None:
        if not self.why:
            self.why = "time" if number == signal.SIGUSR1 else "signal"


@dataclass(slots=True, kw_only=True)
class Member:
    """A member comes to ``rendezvous`` again and again, or ``once``.

    ``patience_s``: so long it tries where nobody listens yet. ``tell`` gets what a person reads.
    """

    rendezvous: Address
    once: bool
    is_own: bool
    patience_s: float
    tell: Callable[[str], None]
    asked: Asked = field(default_factory=Asked)
    _has_met: bool = False

    def run(self) -> int:
        """Do all stages, and return the exit code: 0 once nobody listens any more, 2 refused."""
        self.tell(f"waiting for a run at {self.rendezvous}")
        while True:
            connection = self._connect()
            if connection is None:
                return self._alone()
            ending = _Visit(self, connection).run()
            self._has_met = True
            if ending.code is not None:
                if ending.why:
                    self.tell(ending.why)
                return ending.code
            if self.once:
                return 0

    def _alone(self) -> int:
        if self.asked.why:
            return INTERRUPTED
        if self._has_met:
            self.tell(f"nobody waits for nodes at {self.rendezvous} any more: the run has ended")
            return 0
        self.tell(
            f"nobody listens at {self.rendezvous} after {self.patience_s:.0f} s: start the run "
            "with launch.launcher torchrun and this launch.rendezvous"
        )
        return 1

    def _connect(self) -> socket.socket | None:
        """Return a connection; None where nobody listens, or this member was asked to end."""
        place = (self.rendezvous.host, self.rendezvous.port)
        end = time.monotonic() + (0 if self._has_met else self.patience_s)
        while not self.asked.why:
            try:
                return socket.create_connection(place, timeout=10)
            except OSError:
                if time.monotonic() > end:
                    return None
            time.sleep(_TRY_S)
        return None


@dataclass(frozen=True, slots=True)
class _Ending:
    """A visit ended: ``code`` is the member's exit code, None where it goes on."""

    code: int | None = None
    why: str = ""


class _Lost(Exception):
    """Nothing more is heard of the head."""


class _Refused(Exception):
    """The head does not take this member, or the other way round."""


class _Left(Exception):
    """This member was asked to end before it ran anything."""


class _Stopped(Exception):
    """The stage ended before this member ran anything."""


class _Visit:
    """A visit is one connection to a head: from its first word to the end of a stage."""

    def __init__(self, member: Member, connection: socket.socket) -> None:
        self._member, self._asked = member, member.asked
        self._address = connection.getsockname()[0]
        self._box = Box()
        self._line = Line(connection, self._box.put)
        self._beat_at_s, self._is_heard = 0.0, False

    def run(self) -> _Ending:
        """Meet the head and do this node's share of its stage."""
        self._line.listen()
        try:
            meeting = met(self._line, self._next, address=self._address, is_own=self._member.is_own)
            if isinstance(meeting, Refused):
                raise _Refused(meeting.message)
            self._member.tell(
                f"node {meeting.work.node} of {meeting.work.nodes} for {meeting.work.spec}"
            )
            return self._share(meeting)
        except _Refused as error:
            return _Ending(2, f"refused: {error}")
        except _Left:
            with suppress(LineError):
                self._line.send(Leaving(why=self._asked.why or "signal"))
            return _Ending(INTERRUPTED)
        except (_Lost, LineError, _Stopped):
            return _Ending()
        finally:
            self._line.close()

    def _next(self, timeout_s: float | None = None) -> Word | None:
        """Return the next word; None where none comes in ``timeout_s``, without end where None."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._asked.why:
                raise _Left
            word = self._heard(_TICK_S)
            if word is not None or (end is not None and time.monotonic() >= end):
                return word

    def _heard(self, timeout_s: float) -> Word | None:
        """Return a word that comes within ``timeout_s``; say that this node lives.

        Before the head's first word nobody would read it.
        """
        if self._is_heard and time.monotonic() > self._beat_at_s:
            self._beat_at_s = time.monotonic() + BEAT_S
            self._line.send(Alive())
        taken = self._box.take(timeout_s)
        if taken is None:
            return None
        self._is_heard = True
        _, word = taken
        if isinstance(word, LineError):
            raise _Lost(str(word))
        if isinstance(word, Refused):
            raise _Refused(word.message)
        return None if isinstance(word, Alive) else word

    def _share(self, meeting: Meeting) -> _Ending:
        """Do this node's share of a stage."""
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sdpo-node-"))
            events = Path(folder) / "events.jsonl"
            tail = EventReader(events)
            if not self._sees(meeting):
                return _Ending(2, "the run's files are not seen here")
            spec = read_spec(meeting.work.spec)
            self._hold_devices(stack, meeting, EventWriter(events), tail)
            ranks = Ranks(spec, meeting.work, address=self._address, events=events)
            stack.enter_context(ranks.watched())
            self._line.send(Ready(port=_free_port(self._address)))
            start, before = self._start(), look_of(spec)
            try:
                ranks.start(start)
                ended = self._until_the_end(ranks, tail)
            finally:
                ranks.end()
            with suppress(LineError, _Lost):
                self._pass_on(tail)
                if meeting.work.node == 0:
                    files = written_since(before, spec)
                    ended = ended.model_copy(update={"files": files})
                self._line.send(ended)
                self._over()
        return _Ending(INTERRUPTED if self._asked.why else None)

    def _sees(self, meeting: Meeting) -> bool:
        """Wait until every file of the stage is seen here; tell the head of those that are not."""

        def go_on() -> bool:
            if self._asked.why:
                raise _Left
            if isinstance(self._heard(0), Stop | Over):
                raise _Stopped
            return True

        left = unseen(meeting.work.files, go_on=go_on)
        if not left:
            return True
        named = ", ".join(str(file.path) for file in left[:3])
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        why = (
            f"does not see {named}{more} as the chain's machine does: put what the run needs into "
            "a folder that all nodes share under the same path"
        )
        self._line.send(Ended(code=2, why=why, user=True))
        return False

    def _hold_devices(
        self, stack: ExitStack, meeting: Meeting, events: EventWriter, tail: EventReader
    ) -> None:
        """Hold this node's devices as a stage on one machine does; tell who has them meanwhile."""
        spec = read_spec(meeting.work.spec)
        launch = spec.launch.model_copy(update={"processes": meeting.work.per_node})
        what, has_said = f"a device of {node_name()}", False
        while True:
            try:
                stack.enter_context(
                    hold_devices(launch, run=spec.run.name, listen=events.emit, wait=False)
                )
                break
            except InUseError as error:
                if not has_said:
                    message = f"waiting for {what}: {error.what} is in use by {error.by}"
                    events.emit(WaitEvent(event="waiting", what=what, message=message))
                    has_said = True
            self._pass_on(tail)
            if isinstance(self._next(0.5), Stop | Over):
                raise _Stopped
        if has_said:
            events.emit(WaitEvent(event="waited", what=what))

    def _start(self) -> Start:
        """Wait until every node is ready."""
        while not isinstance(word := self._next(), Start):
            if isinstance(word, Stop | Over):
                raise _Stopped
        return word

    def _over(self) -> None:
        """Wait until the stage is over everywhere: who comes back earlier would find its end."""
        while not self._asked.why and not isinstance(self._heard(_TICK_S), Over):
            pass

    def _until_the_end(self, ranks: Ranks, tail: EventReader) -> Ended:
        """Pass on what the processes tell until they have ended; end them where need be."""
        has_left = False
        while (ended := ranks.ended()) is None:
            if self._asked.why and not has_left:
                has_left = True
                with suppress(LineError):
                    self._line.send(Leaving(why=self._asked.why))
                ranks.stop()
            try:
                self._pass_on(tail)
                if isinstance(self._heard(_TICK_S), Stop | Over):
                    ranks.stop()
            except (_Lost, LineError) as error:
                self._member.tell(f"the run's machine is lost ({error}): ending its processes")
                ranks.end()
                raise _Lost(str(error)) from error
        return ended

    def _pass_on(self, tail: EventReader) -> None:
        for line in tail.lines():
            self._line.send(Told(event=json.loads(line)))


def _free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        port: int = server.getsockname()[1]
        return port


def join(rendezvous: Address, *, patience_s: float, tell: Callable[[str], None]) -> int:
    """Be a node of the run that listens at ``rendezvous``, and return the exit code."""
    member = Member(
        rendezvous=rendezvous, once=False, is_own=False, patience_s=patience_s, tell=tell
    )
    with _listening(member.asked):
        return member.run()


@contextmanager
def _listening(asked: Asked) -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    asked.listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> None:
    """Be a node of one stage, as a head or srun starts it: ``--rendezvous HOST:PORT [--own]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rendezvous", required=True)
    parser.add_argument("--own", action="store_true")
    given = parser.parse_args()
    if given.own:
        die_with_parent()
    address = address_of(given.rendezvous)
    if address is None:
        parser.error(f"{given.rendezvous} is no HOST:PORT")
    member = Member(rendezvous=address, once=True, is_own=given.own, patience_s=60, tell=_print)
    member.asked.listen()
    code = member.run()
    sys.stdout.flush()
    os._exit(code)  # a thread that reads may still wait for the other side


def _print(message: str) -> None:
    print(f"node {node_name()}: {message}", flush=True)


if __name__ == "__main__":
    main()
