"""Wait for files that another machine wrote: a shared file system may show them late.

A file counts as seen once it has the size, and where it is small the digest, that it has where it
was written. What a machine remembers of a folder it looks up anew by opening it.
"""

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sdpo.errors import Fault

PATIENCE_S = 60.0
"""A file that is not seen for so long does not come."""
_SMALL = 1 << 20
_LOOK_S = 0.1


class ExpectedFile(BaseModel):
    """A file is expected to be as it is where it was written; ``sha256`` is empty of a large one.

    Of a folder ``size`` is None: it is there or not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    size: int | None = None
    sha256: str = ""


def as_here(path: Path) -> list[ExpectedFile]:
    """Return what another machine has to see of ``path``: the file, or a folder with its files."""
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.is_file())
        return [ExpectedFile(path=path), *(each for file in files for each in as_here(file))]
    size = path.stat().st_size
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if size <= _SMALL else ""
    return [ExpectedFile(path=path, size=size, sha256=sha256)]


def is_seen(file: ExpectedFile) -> bool:
    """Return whether a file is here as it is where it was written."""
    try:
        if file.size is None:
            return file.path.is_dir()
        # Opened, not only asked for: that is when a network's file system asks for what is new.
        with file.path.open("rb") as opened:
            if os.fstat(opened.fileno()).st_size != file.size:
                return False
            return not file.sha256 or hashlib.sha256(opened.read()).hexdigest() == file.sha256
    except OSError:
        return False


def unseen(
    files: Iterable[ExpectedFile],
    *,
    patience_s: float = PATIENCE_S,
    go_on: Callable[[], bool] = lambda: True,
) -> list[ExpectedFile]:
    """Wait until all of ``files`` are seen, and return those that are not after ``patience_s``.

    ``go_on`` is asked meanwhile; once it says no, what is not seen by then is returned.
    """
    left, end = list(files), time.monotonic() + patience_s
    while True:
        left = [file for file in left if not is_seen(file)]
        if not left or time.monotonic() > end or not go_on():
            return left
        for folder in {file.path.parent for file in left}:
            with suppress(OSError):
                os.scandir(folder).close()  # looks the folder up anew
        time.sleep(_LOOK_S)


def see(files: Iterable[ExpectedFile]) -> None:
    """Wait until ``files`` are seen here.

    Raises:
        Fault: one of them is not.
    """
    if left := unseen(files):
        raise Fault(
            f"node {socket.gethostname()} does not see {left[0].path} as it was written after "
            f"{PATIENCE_S:.0f} s: the folder has to be in a file system that all nodes share"
        )
