"""Lock files between processes: the kernel holds the locks (flock), so they end with their holder.

A lock file says who holds it. On a clean release it is emptied. A note that is still there when the
lock is taken was left by a process that died, and whoever takes over says so.
"""

import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from sdpo.errors import InUseError, UserError
from sdpo.events import Listener, WaitEvent, WarningEvent

_TRIES, _LOOK_S = 3, 0.005


@dataclass(frozen=True, slots=True)
class Holder:
    """A holder holds a lock, or held it last."""

    pid: int
    host: str
    since: str
    run: str = ""

    @property
    def is_here(self) -> bool:
        """Return whether it runs, or ran, on this host."""
        return self.host == socket.gethostname()

    @property
    def has_died(self) -> bool:
        """Return whether it ran on this host and runs no more."""
        return self.is_here and not psutil.pid_exists(self.pid)

    def __str__(self) -> str:
        of = f" (run {self.run})" if self.run else ""
        return f"process {self.pid} on host {self.host} since {self.since}{of}"


@contextmanager
def hold(
    path: Path,
    *,
    what: str,
    wait: bool = False,
    listen: Listener = lambda event: None,
    run: str = "",
    otherwise: str = "",
) -> Iterator[int]:
    """Hold ``path`` for this process alone.

    ``what`` names the thing that it guards, ``run`` the run that needs it, for the others;
    ``otherwise`` tells who waits how to avoid that.

    Yields the file descriptor: a child that has it holds the lock too. With ``wait``, waits for
    another holder to let go.

    Raises:
        InUseError: another process holds it, and ``wait`` is not set; the message says which.
        UserError: the file is something else than a lock.
    """
    handle = _own(path, lambda it: _lock(it, what, otherwise, wait=wait, listen=listen))
    try:
        left = _holder(handle)
        if left:
            listen(WarningEvent(message=_taken_over(what, left)))
        with _noted(handle, run):
            yield handle
    finally:
        os.close(handle)


def _own(path: Path, lock: Callable[[int], None]) -> int:
    """Lock a file that has no other name: its holder writes a note into it.

    Another name is a copy of the folder by hard links, or a file of the user's. While the lock is
    held nobody else holds it, so the file can be replaced; whoever waits for it notices.
    """
    while True:
        handle = _locked(path, lock)
        try:
            _check_note(handle, path)
            if os.fstat(handle).st_nlink <= 1:
                return handle
            path.unlink(missing_ok=True)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def _noted(handle: int, run: str) -> Iterator[None]:
    """Write into the lock file who holds it, until this process lets go or dies."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    holder = Holder(os.getpid(), socket.gethostname(), since, run)
    try:
        _write_note(handle, json.dumps(asdict(holder)))
        yield
    except (Exception, KeyboardInterrupt):
        _write_note(handle, "")
        raise
    _write_note(handle, "")


@contextmanager
def share(path: Path, *, what: str, listen: Listener = lambda event: None) -> Iterator[int]:
    """Hold ``path`` together with others, and yield a descriptor that holds it.

    Who wants it alone waits or is refused; where somebody has it alone this waits, and tells so of
    ``what`` it guards.
    """
    handle = _locked(path, lambda it: _join(it, what, listen))
    try:
        yield handle
    finally:
        os.close(handle)


def _join(handle: int, what: str, listen: Listener) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        message = f"waiting for {what}, in use by {_in_use_by(_holder(handle))}"
        listen(WaitEvent(event="waiting", what=what, message=message))
        fcntl.flock(handle, fcntl.LOCK_SH)
        listen(WaitEvent(event="waited", what=what))


def _locked(path: Path, lock: Callable[[int], None]) -> int:
    """Let ``lock`` lock the file that is at ``path`` now; return a descriptor that holds the lock.

    A holder may remove the file together with what it guarded at any moment: then the lock is
    another file.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = _open(path)
        except FileNotFoundError:
            continue  # the folder was removed after it was made
        try:
            lock(handle)
            if is_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _open(path: Path) -> int:
    """Open the lock file, which is made where there is none; never through a link."""
    try:
        # One look: a holder may remove the file between two of them.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise _no_lock(path)
    except FileNotFoundError:
        pass
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _check_note(handle: int, path: Path) -> None:
    """Refuse a file that is held now and has other content than a lock: it would be lost."""
    if os.fstat(handle).st_size and _holder(handle) is None:
        raise _no_lock(path)


def _no_lock(path: Path) -> UserError:
    return UserError(
        f"{path} stands where a lock belongs, and is none: it stays as it is. Move it away, or "
        "choose another folder"
    )


def is_lock(path: Path) -> bool:
    """Return whether a file is a lock by its content: empty, or the note of a holder."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        content = path.read_bytes()
    except OSError:
        return False
    return not content or _note(content) is not None


def _lock(handle: int, what: str, otherwise: str, *, wait: bool, listen: Listener) -> None:
    if _try(handle):
        return
    by = _in_use_by(_holder(handle))
    if not wait:
        raise InUseError(what, by)
    message = f"waiting for {what}, in use by {by}{otherwise and f'; {otherwise}'}"
    listen(WaitEvent(event="waiting", what=what, message=message))
    fcntl.flock(handle, fcntl.LOCK_EX)
    listen(WaitEvent(event="waited", what=what))


def _try(handle: int) -> bool:
    """Try to take the lock, and return whether that worked.

    It is tried for a moment, since a process that looks whether it is held holds it for an instant.
    """
    for _ in range(_TRIES):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOOK_S)
        else:
            return True
    return False


@dataclass(frozen=True, slots=True)
class Held:
    """A held lock is one that somebody holds: ``holder`` by its note, None where it has none."""

    holder: Holder | None

    @property
    def is_orphan(self) -> bool:
        """Return whether the holder has died while something that it started holds the lock."""
        return self.holder is not None and self.holder.has_died


def look(path: Path) -> Held | None:
    """Return who holds a lock, on any host that the file system tells of; None: nobody.

    Nothing is written, and nobody is kept from the lock for more than a moment.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return Held(_holder(handle))
    finally:
        os.close(handle)
    return None


def is_at(handle: int, path: Path) -> bool:
    """Return whether the file of a descriptor is the one at ``path`` now."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def _holder(handle: int) -> Holder | None:
    return _note(os.pread(handle, 1000, 0))


def _note(content: bytes) -> Holder | None:
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None  # empty, or being written


def _in_use_by(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    if holder.has_died:
        return f"what {holder} started: it has ended itself, its stage is still ending"
    return str(holder)


def _taken_over(what: str, left: Holder) -> str:
    if left.is_here:
        return f"{what} was left behind by {left}, which has died: taken over, nothing to do"
    return (
        f"{what} was left behind by {left}: taken over, since nobody here holds it. On some shared "
        "file systems locks do not reach other hosts: make sure that process has ended"
    )


def _write_note(handle: int, note: str) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, note.encode(), 0)
