"""Own a run in a store: one process at a time may write, wherever it runs.

Owners are numbered. A process becomes the owner by creating the object of the next number, which
the store does for one of those who try; it then says again and again that it lives. Who finds an
owner that has said nothing for the time that it gave itself takes it for dead. No clock is compared
with another machine's: the silence is waited for.
"""

import getpass
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, ValidationError

from sdpo.errors import ConfigError, Fault, ForeignFolderError, IntegrityError, InUseError
from sdpo.events import Listener, WaitEvent, WarningEvent
from sdpo.remote.place import Place

_FOLDER = "lease"
_CLAIM = re.compile(r"(\d{8})\.json")
_LOOKS = 20
"""An owner is looked at so many times in the time after which it counts as dead."""
_LOOK_AT_MOST_S = 2.0


class LostRunError(Fault):
    """Another process has taken a run over, so this one must not go on with it."""


class Owner(BaseModel):
    """An owner says who it is and, by ``beat``, that it lives.

    ``silence_s``: it is dead where it has said nothing for so many seconds. ``ended``: it has given
    the run back. ``folder`` is where it has the run, ``token`` nobody else knows. ``tidied_for``:
    it has changed nothing of the run after the owner of this token.
    """

    model_config = ConfigDict(frozen=True)

    token: str
    host: str
    pid: int
    user: str
    folder: str
    since: str
    silence_s: float
    beat: int = 0
    ended: bool = False
    tidied_for: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host} since {self.since}"


def this_process(*, folder: str, silence_s: float) -> Owner:
    """Return what this process says of itself as the owner of the run in ``folder``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return Owner(
        token=secrets.token_hex(16),
        host=socket.gethostname(),
        pid=os.getpid(),
        user=user,
        folder=folder,
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        silence_s=silence_s,
    )


def on_behalf(place: Place, *, silence_s: float) -> Owner:
    """Return this process as an owner that tidies up, and makes nothing of the run.

    Whoever owned it before may go on as if nobody had been there.
    """
    number = newest(place)
    last = _read_owner(place, number) if number else None
    owner = this_process(folder="", silence_s=silence_s)
    if last is None:
        return owner
    return owner.model_copy(
        update={
            "tidied_for": last.tidied_for or last.token,
            "host": last.host,
            "folder": last.folder,
        }
    )


@dataclass(slots=True)
class Lease:
    """A lease is this process's right to write at a place, as its owner of this ``number``.

    ``was_mine``: the owner before was a process on the same folder, so that nobody has written
    between.
    """

    place: Place
    number: int
    owner: Owner
    was_mine: bool

    def say(self, *, ended: bool = False) -> None:
        """Say that this process lives, or that it has ended.

        Raises:
            LostRunError: another process has taken the run over.
            StoreError: the store did not answer.
        """
        self.check()
        self.owner = self.owner.model_copy(update={"beat": self.owner.beat + 1, "ended": ended})
        self.place.write(_beat(self.number), self.owner.model_dump_json().encode())

    def check(self) -> None:
        """Check that the run is still this process's.

        Raises:
            LostRunError: another process has taken it over.
            StoreError: the store did not answer.
        """
        number = newest(self.place)
        if number > self.number:
            by = _read_owner(self.place, number)
            raise LostRunError(
                f"{self.place.url} was taken over by {by or 'another process'}, which took this "
                "one for dead. What is here stays as it is, and goes nowhere: go on there, or, "
                f"when that one has ended, move this folder away and `sdpo resume "
                f"{self.place.url}`"
            )


def acquire(
    place: Place,
    owner: Owner,
    *,
    known: str = "",
    wait: bool = False,
    listen: Listener = lambda event: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Become the owner of the run at ``place``.

    ``known`` is the token under which the same folder owned it last. An owner that may be dead is
    watched for as long as it said; with ``wait``, one that lives is waited for.

    Raises:
        InUseError: another process owns it, and lives.
        ForeignFolderError: what is at the place is no run of this project.
        ConfigError: the store writes conditionally only in name.
        StoreError: the store did not answer.
    """
    while True:
        number = newest(place)
        if not number and (there := place.names()):
            raise ForeignFolderError(
                f"{place.url} holds {', '.join(there[:4])}, and nothing that this project made: "
                "nothing in it is touched. Name another store.remote"
            )
        before = _read_owner(place, number)
        is_mine = before is not None and _is_same(before, owner, known)
        if before and not before.ended and not is_mine:
            _wait_for_silence(place, number, wait=wait, listen=listen, sleep=sleep)
            if newest(place) != number:
                continue
        content = owner.model_dump_json().encode()
        if place.create(_claim(number + 1), content) or _is_own(place, number + 1, owner):
            _check_conditional(place, number + 1, content)
            _forget(place, number - 1)
            return Lease(place, number + 1, owner, was_mine=is_mine or before is None)


def newest(place: Place) -> int:
    """Return the number of the newest owner; 0 where there was none.

    Raises:
        StoreError: the store did not answer.
    """
    found = (_CLAIM.fullmatch(name) for name in place.names(_FOLDER))
    return max((int(m[1]) for m in found if m), default=0)


def _wait_for_silence(
    place: Place,
    number: int,
    *,
    wait: bool,
    listen: Listener,
    sleep: Callable[[float], None],
) -> None:
    """Wait until an owner is known to be dead, or has given the run back.

    Raises:
        InUseError: it lives, and is not to be waited for.
    """
    said, since = _read_owner(place, number), time.monotonic()
    what = f"the run at {place.url}"
    if said is None:
        return
    message = (
        f"{what} is owned by {said}: looking for up to {said.silence_s:.0f} s whether it lives"
    )
    listen(WaitEvent(event="waiting", what=what, message=message))
    try:
        while time.monotonic() - since < said.silence_s:
            sleep(min(_LOOK_AT_MOST_S, said.silence_s / _LOOKS))
            now = _read_owner(place, number)
            if now is None or now.ended or newest(place) != number:
                return
            if now.beat != said.beat:
                if not wait:
                    raise InUseError(what, str(now))
                said, since = now, time.monotonic()
    finally:
        listen(WaitEvent(event="waited", what=what))
    listen(
        WarningEvent(
            message=f"{what} was owned by {said}, which has said nothing for "
            f"{said.silence_s:.0f} s: taken over"
        )
    )


def _is_same(before: Owner, owner: Owner, known: str) -> bool:
    """Return whether the owner before was a process on this folder: this one holds its lock now.

    Who has tidied up after such a process is gone once it says so, and not before.
    """
    here = (before.host, before.folder) == (owner.host, owner.folder)
    is_known = before.token == known or (before.ended and before.tidied_for == known)
    return here and bool(known) and is_known


def _check_conditional(place: Place, number: int, content: bytes) -> None:
    """Refuse a store that has just created an object and creates it once more."""
    if place.create(_claim(number), content):
        place.delete(_claim(number))
        raise ConfigError(
            f"{place.url}: this store overwrites an object that was to be created only where "
            "there is none, so that two machines could own one run. Use one that knows "
            "If-None-Match, as S3 does"
        )


def _is_own(place: Place, number: int, owner: Owner) -> bool:
    """Return whether an object that could not be created is this process's: its answer was lost."""
    said = _owner_of(place.read(_claim(number)) or b"")
    return said is not None and said.token == owner.token


def _forget(place: Place, last: int) -> None:
    """Remove what owners up to ``last`` said."""
    for name in place.names(_FOLDER):
        if (number := name.split(".", maxsplit=1)[0]).isdigit() and int(number) <= last:
            place.delete(f"{_FOLDER}/{name}")


def _read_owner(place: Place, number: int) -> Owner | None:
    """Return what an owner said last; None where there is none of this number.

    Raises:
        IntegrityError: something else is there, so that nobody can tell whether it lives.
    """
    content = place.read(_beat(number)) or place.read(_claim(number))
    owner = _owner_of(content or b"")
    if content and owner is None:
        raise IntegrityError(
            f"{place.url}/{_claim(number)} was changed: it does not say who owns the run. Where "
            "nobody does, remove the folder `lease` there"
        )
    return owner


def _owner_of(content: bytes) -> Owner | None:
    try:
        return Owner.model_validate_json(content)
    except ValidationError:
        return None


def _claim(number: int) -> str:
    return f"{_FOLDER}/{number:08d}.json"


def _beat(number: int) -> str:
    return f"{_FOLDER}/{number:08d}.beat.json"
