"""Gather the nodes of a stage, start it on all of them together, and end it on all together."""

import json
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from sdpo.events import ErrorEvent, EventWriter, InterruptedEvent, WaitEvent
from sdpo.processes.nodes.line import Box, Line, LineError
from sdpo.processes.nodes.meeting import TOKEN_SUFFIX, objection, write_token
from sdpo.processes.nodes.needed_files import files_of
from sdpo.processes.nodes.outlook import Failed, Outlook
from sdpo.processes.nodes.rendezvous import launch_of
from sdpo.processes.nodes.seats import Seat, check_reach, failure, loss, place
from sdpo.processes.nodes.words import (
    BEAT_S,
    PROTOCOL,
    Alive,
    Challenge,
    Ended,
    Hello,
    Leaving,
    Over,
    Ready,
    Refused,
    Start,
    Stop,
    Told,
    Word,
    Work,
    proof_of,
)
from sdpo.processes.spec import Spec
from sdpo.processes.supervisor import USER_ERROR_EXIT
from sdpo.system.interrupts import GRACE_S
from sdpo.system.seen import PATIENCE_S, unseen

_TICK_S = 0.1
_MEETING_S = 60.0
_STOPPED_S = GRACE_S + 2
"""Members have ended what they run so long after they were told to."""
_INTERRUPTED = 128 + signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Outcome:
    """A gathering ended with this exit code; ``time_is_up``: for the nodes' job.

    ``saved``: a state was saved meanwhile.
    """

    code: int
    time_is_up: bool = False
    saved: bool = False


class Head:
    """A head gathers the members of a stage, starts them together, and ends them together.

    ``server`` is where members come to, ``asked`` says whether the stage is to stop, ``outlook``
    whether members will come.
    """

    def __init__(
        self,
        spec: Spec,
        path: Path,
        *,
        server: socket.socket,
        outlook: Outlook,
        asked: Callable[[], bool],
    ) -> None:
        self._launch = launch_of(spec)
        self._nodes = self._launch.nodes
        self._spec, self._path, self._server = spec, path, server
        self._outlook, self._asked = outlook, asked
        self._events = EventWriter(spec.events)
        self._box, self._seats, self._members = Box(), list[Seat](), list[Seat]()
        self._errors: list[dict[str, JsonValue]] = []
        self._saved, self._time_is_up, self._beat_at_s = False, False, 0.0
        self._token = path.with_name(f"{spec.name}{TOKEN_SUFFIX}")
        self._secret = ""

    def run(self) -> Outcome:
        """Run the stage once, from the first member's coming to the last one's end."""
        self._secret = write_token(self._token)
        try:
            self._gather()
            self._make_ready()
            self._start()
            return self._until_the_end()
        except _Asked:
            return self._stopped()
        except Failed as error:
            self._stop_all()
            if self._asked():
                return self._stopped()
            self._tell_errors(error.event)
            return Outcome(error.code)
        finally:
            for seat in self._seats:
                seat.send(Over())
                seat.line.close()
            self._token.unlink(missing_ok=True)

    def _stopped(self) -> Outcome:
        """Say at once that the stage was asked to stop, and have every member do so."""
        self._events.emit(InterruptedEvent(message=f"{self._spec.name} was asked to stop"))
        self._stop_all()
        return Outcome(_INTERRUPTED)

    # -- gathering ---------------------------------------------------------------------------------

    def _gather(self) -> None:
        """Wait until as many members as there are nodes have come and were taken."""
        self._server.settimeout(0)
        said = ""
        while len(self._members) < self._nodes:
            message = self._outlook.message(len(self._members), self._nodes)
            if message != said:
                said = message
                self._events.emit(WaitEvent(event="waiting", what="nodes", message=message))
            self._accept()
            self._heed(_TICK_S)
            self._members = [seat for seat in self._members if not seat.lost]
        self._events.emit(WaitEvent(event="waited", what="nodes"))
        for seat in [seat for seat in self._seats if seat not in self._members]:
            self._drop(seat)  # it comes back, and waits for the next stage

    def _accept(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            connection, _ = self._server.accept()
            seat = Seat(line=Line(connection, self._box.put))
            self._seats.append(seat)
            seat.line.listen()
            seat.send(Challenge(protocol=PROTOCOL, token=self._token, nonce=seat.nonce))
        for seat in [each for each in self._seats if each.hello is None]:
            if seat.lost or time.monotonic() > seat.since_s + _MEETING_S:
                self._drop(seat)

    def _drop(self, seat: Seat) -> None:
        seat.line.close()
        self._seats.remove(seat)

    def _meet(self, seat: Seat, hello: Hello) -> None:
        """Take a member, refuse it by name, or let it wait where there is no room for it."""
        seat.hello = hello
        problem = objection(
            hello, launch=self._launch, token=self._token, secret=self._secret, nonce=seat.nonce
        )
        if problem:
            seat.send(Refused(message=problem))
            self._drop(seat)
            if self._outlook.is_fixed:
                raise Failed(ErrorEvent(user=True, message=problem), USER_ERROR_EXIT)
            self._events.warning(f"{problem}. It is not taken")
            return
        others = [each for each in self._members if not self._is_own(each)]
        if self._is_own(seat) or len(others) < self._nodes - self._outlook.own:
            self._members.append(seat)

    def _is_own(self, seat: Seat) -> bool:
        return seat.hello is not None and seat.hello.is_own

    def _make_ready(self) -> None:
        """Give every member its place, and wait until each sees all files and has its devices."""
        self._members.sort(key=place)
        check_reach(self._members)
        files = files_of(self._spec, self._path)
        for number, seat in enumerate(self._members):
            seat.send(
                Work(
                    proof=proof_of(self._secret, seat.hello.nonce if seat.hello else ""),
                    spec=self._path,
                    node=number,
                    nodes=self._nodes,
                    per_node=self._launch.per_node,
                    files=files,
                )
            )
        while any(seat.ready is None for seat in self._members):
            self._heed(_TICK_S)
            self._check_members()

    def _start(self) -> None:
        first = self._members[0]
        if first.hello and first.ready:
            start = Start(address=first.hello.address, port=first.ready.port)
            for seat in self._members:
                seat.send(start)

    # -- running -----------------------------------------------------------------------------------

    def _until_the_end(self) -> Outcome:
        """Listen to the members until all have ended."""
        while not all(seat.ended for seat in self._members):
            self._heed(_TICK_S)
            if self._time_is_up:
                self._stop_all()
                return Outcome(_INTERRUPTED, time_is_up=True, saved=self._saved)
            self._check_members()
        self._see(self._members[0])
        return Outcome(0)

    def _see(self, first: Seat) -> None:
        """Wait until what the stage has written is seen here, where the chain reads it.

        Raises:
            Failed: it is not.
        """

        def go_on() -> bool:
            self._heed(0)
            return True

        left = unseen(first.ended.files, go_on=go_on) if first.ended else []
        if left:
            message = (
                f"{left[0].path} is not seen here as {first.name} wrote it after "
                f"{PATIENCE_S:.0f} s: the run's folder has to be shared by all nodes"
            )
            raise Failed(ErrorEvent(user=False, message=message))

    def _check_members(self) -> None:
        """Notice who is lost, left or failed.

        Raises:
            Failed: one of them.
        """
        for number, seat in enumerate(self._members):
            if seat.ended and seat.ended.code:
                raise failure(seat, seat.ended)
            if not seat.ended and (seat.lost or seat.is_leaving):
                raise Failed(loss(self._spec, seat, number))

    def _heed(self, timeout_s: float) -> None:
        """Heed what members say within ``timeout_s``, and say that the head lives.

        Raises:
            _Asked: this process was asked to stop.
        """
        if self._asked():
            raise _Asked
        self._beat()
        end = time.monotonic() + timeout_s
        while taken := self._box.take(max(0.0, end - time.monotonic())):
            self._hear(*taken)

    def _beat(self) -> None:
        if time.monotonic() > self._beat_at_s:
            self._beat_at_s = time.monotonic() + BEAT_S
            for seat in self._seats:
                seat.send(Alive())

    def _hear(self, line: Line, word: Word | LineError) -> None:
        seat = next((each for each in self._seats if each.line is line), None)
        if seat is None:
            return
        match word:
            case LineError():
                seat.lost = seat.lost or str(word)
            case Hello() if seat.hello is None:
                self._meet(seat, word)
            case Ready():
                seat.ready = word
            case Told():
                self._take(word.event)
            case Ended():
                seat.ended = word
            case Leaving(why="time"):
                self._time_is_up = True
            case Leaving():
                seat.is_leaving = True
            case _:
                pass

    def _take(self, event: dict[str, JsonValue]) -> None:
        """Pass an event on; errors wait, since one that fails lets others fail after it."""
        kind = event.get("event")
        if kind == "error":
            self._errors.append(event)
        elif kind != "interrupted":  # each is told to stop where one fails
            self._saved = self._saved or kind == "checkpoint"
            self._append(event)

    def _append(self, event: dict[str, JsonValue]) -> None:
        with self._spec.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def _stop_all(self) -> None:
        """Have every member end its processes, and wait for that; what they tell is passed on."""
        for seat in self._members:
            if not seat.is_done:
                seat.send(Stop())
        end = time.monotonic() + _STOPPED_S
        while time.monotonic() < end and not all(seat.is_done for seat in self._members):
            self._beat()
            if taken := self._box.take(_TICK_S):
                self._hear(*taken)

    def _tell_errors(self, own: ErrorEvent) -> None:
        """Tell what went wrong: who was killed or lost, else the user's mistake, else the first."""
        if own.killed or own.user or not self._errors:
            self._events.emit(own)
        for event in sorted(self._errors, key=lambda event: not event.get("user")):
            self._append(event)


class _Asked(Exception):
    """The head was asked to stop."""
