"""Let processes that score rows of one cache entry at the same time share them out.

Who begins to score claims the rows that are neither cached nor claimed, in a file that the kernel
locks for as long as its process lives. Others score what is left, and read the claimed rows once
they are there; the claim of a process that died holds nothing.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdpo.store.logp_cache import LogpCache
from sdpo.system.files import temporary_path
from sdpo.system.locks import hold, look


@dataclass(frozen=True, slots=True)
class Claimed:
    """Of rows that are wanted these are ``mine`` to score, and these ``cached`` by now.

    Both are bool ``[rows]``; the others are being scored by another process.
    """

    mine: NDArray[np.bool_]
    cached: NDArray[np.bool_]


@contextmanager
def claimed(cache: LogpCache, wanted: NDArray[np.bytes_]) -> Iterator[Claimed]:
    """Claim, while within, those of the ``wanted`` digests that nobody else scores or has scored.

    What was claimed has to be in the cache when it is left.
    """
    cache.folder.mkdir(parents=True, exist_ok=True)
    lock = cache.folder.with_name(f".{cache.folder.name}.lock")
    with hold(lock, what=f"the cached log-probs {cache.folder.name}", wait=True):
        taken = _taken_by_others(cache.folder)  # before the look: who lets go has written its rows
        cached = cache.lookup(wanted).present
        mine = ~cached & ~np.isin(wanted, taken)
        claim = _claim(cache.folder, wanted[mine]) if mine.any() else None
        lock.unlink(missing_ok=True)
    try:
        yield Claimed(mine, cached)
    finally:
        if claim is not None:
            path, handle = claim
            path.unlink(missing_ok=True)
            os.close(handle)


def _claim(folder: Path, digests: NDArray[np.bytes_]) -> tuple[Path, int]:
    """Write a claim, and return its path and the descriptor that holds it."""
    path = temporary_path(folder / "claim")
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with open(handle, "wb", closefd=False) as file:
        file.write(digests.tobytes())
    return path, handle


def _taken_by_others(folder: Path) -> NDArray[np.bytes_]:
    """Return the digests that are claimed, and remove the claims of processes that have died."""
    found = [np.empty(0, dtype="S16")]
    for path in sorted(
        folder.glob(temporary_path(folder / "claim").name.rpartition("-")[0] + "-*")
    ):
        if look(path) is None:
            path.unlink(missing_ok=True)
        else:
            content = path.read_bytes() if path.is_file() else b""
            found.append(np.frombuffer(content, dtype="S16"))
    return np.concatenate(found)
