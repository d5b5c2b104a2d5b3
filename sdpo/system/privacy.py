"""Keep files that are made from private data as private as that data.

A file that not everybody may read says so by its mode. While something is made from it, the process
makes no file that others could read who may not read the source: a umask, which its stages inherit.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_GROUP, _OTHERS = 0o070, 0o007


@contextmanager
def withholding(bits: int) -> Iterator[None]:
    """Withhold these permission bits from files and folders made within.

    Those that the process's own umask withholds are withheld as well.
    """
    before = os.umask(0o077)
    os.umask(before | bits)
    try:
        yield
    finally:
        os.umask(before)


def withheld(sources: Iterable[Path], *, place: Path) -> int:
    """Return permission bits that files made in ``place`` from ``sources`` must not have.

    A source that is not there says nothing; a folder counts with all files in it.
    """
    mask, group = 0, _group_in(place)
    for path in sources:
        for status in _statuses(path):
            mask |= _closed(status, group=group)
    return mask


def withheld_by_folder(folder: Path) -> int:
    """Return permission bits that what is made from a folder's files must not have.

    The mode of its folder alone says how private a run or a model is.
    """
    try:
        mode = folder.stat().st_mode
    except OSError:
        return 0
    return sum(bits for bits in (_GROUP, _OTHERS) if not mode & bits)


def _closed(status: os.stat_result, *, group: int) -> int:
    """Return the bits of those who may not read what has this status."""
    mode, is_folder = status.st_mode, stat.S_ISDIR(status.st_mode)
    others = bool(mode & stat.S_IROTH) and (not is_folder or bool(mode & stat.S_IXOTH))
    members = bool(mode & stat.S_IRGRP) and (not is_folder or bool(mode & stat.S_IXGRP))
    # Another group than that which may read the source is none of its readers.
    allowed = members and (others or status.st_gid == group)
    return (0 if others else _OTHERS) | (0 if allowed else _GROUP)


def _statuses(path: Path) -> Iterator[os.stat_result]:
    with suppress(OSError):
        yield path.stat()
    for where, folders, files in os.walk(path):
        for name in (*folders, *files):
            with suppress(OSError):
                yield (Path(where) / name).stat()


def _group_in(place: Path) -> int:
    """Return the group that new files in ``place`` will have."""
    folder = next(f for f in (place.absolute(), *place.absolute().parents) if f.exists())
    status = folder.stat()
    return status.st_gid if status.st_mode & stat.S_ISGID else os.getegid()
