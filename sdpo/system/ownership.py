"""Know which folders are this project's: those with the marker that it wrote when it made them.

A run, a cache and a server's folder have names that a user chooses, so something of the user's may
be there. A folder is taken up, written to or cleaned only where its marker says what it is, or
where it was made before there were markers and its own content proves it. Anything else that exists
is refused and stays as it is.
"""

import json
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

from sdpo.errors import ForeignFolderError
from sdpo.system.files import is_no_file, read_small
from sdpo.system.locks import is_lock

Kind = Literal["run", "cache", "server", "study"]
Proof = Callable[[Path], bool]
"""A proof tells whether the content of a folder without a marker shows that it is ours."""

MARKER = ".sdpo.json"
"""A folder is known by this file; it never changes."""
LOCK = ".lock"
"""The process that works in a folder holds this lock of it."""

_WHAT: dict[Kind, str] = {
    "run": "run",
    "cache": "cache",
    "server": "server's folder",
    "study": "study",
}
_REMEDY: dict[Kind, str] = {
    "run": "give the run another name (--name), or its folder another place (--runs-dir)",
    "cache": "name another folder (store.cache_dir)",
    "server": "name another folder (--folder)",
    "study": "give the study another name (--name), or its folder another place (--runs-dir)",
}
_NAMED = 4
_WRITTEN_S = 5.0
"""Another process may take so long between making a marker and writing its content."""


def is_marked(folder: Path, kind: Kind) -> bool:
    """Return whether this project made a folder as a ``kind``, by its marker."""
    path = f"{folder}/{MARKER}"
    try:
        return stat.S_ISREG(os.lstat(path).st_mode) and read_small(path) == _content(kind)
    except OSError as error:
        if is_no_file(error):
            return False
        raise


def is_own(folder: Path, kind: Kind, *, proof: Proof) -> bool:
    """Return whether a folder is this project's: by its marker, or by ``proof`` without one."""
    if is_marked(folder, kind):
        return True
    return folder.is_dir() and not os.path.lexists(folder / MARKER) and proof(folder)


def check(folder: Path, kind: Kind, *, proof: Proof) -> None:
    """Refuse a ``folder`` that is not this project's and cannot become so; nothing is written.

    Raises:
        ForeignFolderError: something else is there; it is named.
    """
    if not os.path.lexists(folder):
        return
    # Looked at twice: between the two another process may have begun the same run.
    free = is_own(folder, kind, proof=proof) or _is_vacant(folder) or _is_marked_soon(folder, kind)
    if not free:
        raise ForeignFolderError(
            f"{folder} {_description(folder, kind)}: nothing in it is touched. "
            f"{_REMEDY[kind][0].upper()}{_REMEDY[kind][1:]}"
        )


def claim(folder: Path, kind: Kind, *, proof: Proof) -> None:
    """Make ``folder`` with its marker, or take up one that is this project's.

    An empty folder is taken as well: it may be where a disk is mounted, and nothing can be lost.

    Raises:
        ForeignFolderError: something else is there; it is named.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir()
    if not is_marked(folder, kind):
        check(folder, kind, proof=proof)
        _mark(folder, kind)


def _mark(folder: Path, kind: Kind) -> None:
    path = folder / MARKER
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:  # another process has made it just now
        check(folder, kind, proof=lambda _: False)
        return
    try:
        os.write(handle, _content(kind))
        os.fsync(handle)
    except BaseException:  # a full disk: an empty marker would be nobody's
        path.unlink()
        raise
    finally:
        os.close(handle)


def _is_marked_soon(folder: Path, kind: Kind) -> bool:
    """Return :func:`is_marked`, waiting while a marker is empty: another process is writing it."""
    end = time.monotonic() + _WRITTEN_S
    while not is_marked(folder, kind):
        if time.monotonic() > end or not _is_empty(folder / MARKER):
            return is_marked(folder, kind)
        time.sleep(0.01)
    return True


def _is_empty(path: Path) -> bool:
    try:
        found = os.lstat(path)
    except OSError as error:
        if is_no_file(error):
            return False
        raise
    return stat.S_ISREG(found.st_mode) and not found.st_size


@cache
def _content(kind: Kind) -> bytes:
    return json.dumps({"made_by": "sdpo", "kind": kind, "format": 1}).encode() + b"\n"


def _is_vacant(folder: Path) -> bool:
    """Return whether a folder holds nothing but what a file system or a lock needs."""
    return folder.is_dir() and all(
        (entry.name == LOCK and is_lock(entry)) or (entry.name == "lost+found" and entry.is_dir())
        for entry in folder.iterdir()
    )


def _description(folder: Path, kind: Kind) -> str:
    """Return what is in the way, in words."""
    if not folder.is_dir():
        return "is a link to nothing" if folder.is_symlink() else "is not a folder"
    for other, what in _WHAT.items():
        if other != kind and is_marked(folder, other):
            return f"is a {what} of this project and not a {_WHAT[kind]}"
    names = sorted(entry.name for entry in folder.iterdir())
    listed = ", ".join(names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"is no {_WHAT[kind]} that this project made: it has no {MARKER} of its own and holds "
        f"{listed}{more}"
    )
