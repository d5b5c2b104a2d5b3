"""Free the locks that killed processes have left where torch builds and loads C++ extensions.

DeepSpeed loads such an extension when it starts. torch takes a lock meanwhile, a file that it holds
open, and whoever finds the file waits until it is gone: after a kill in that second every later
start would wait for ever, without a word.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

_NAME = "lock"


def free_extension_locks(*, warn: Callable[[str], None], folder: Path | None = None) -> None:
    """Remove the locks in torch's ``folder`` of extensions that no process here holds open.

    ``warn`` gets a message on each. Those that somebody holds stay: they are freed when that one is
    done.
    """
    locks = sorted((folder or _build_root()).glob(f"*/*/{_NAME}"))
    seen = {lock: _made(lock) for lock in locks}
    if not seen:
        return
    held = set(_open_files())
    for lock, made in seen.items():
        # Another rank may have removed it meanwhile and have taken one of its own in its place.
        if made is None or made[:2] in held or _made(lock) != made:
            continue
        lock.unlink(missing_ok=True)
        warn(
            f"{lock} was left by a process that was killed while torch loaded an extension, and "
            "would have been waited for: it is removed"
        )


def _made(lock: Path) -> tuple[int, int, int] | None:
    """Return the device and inode of a lock and when it was made; None: it is gone."""
    try:
        found = lock.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _build_root() -> Path:
    from torch.utils.cpp_extension import get_default_build_root

    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return Path(given or get_default_build_root())


def _open_files() -> Iterator[tuple[int, int]]:
    """Yield device and inode of what the processes of this user have open (Linux)."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found = link.stat()
        except OSError:
            continue  # closed meanwhile, or another user's
        yield found.st_dev, found.st_ino
