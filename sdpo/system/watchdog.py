"""End a stage when the process that started it cannot: ``python -m sdpo.system.watchdog MARK FD``.

The kernel tells a stage that its parent died, but not what the stage has started, in sessions of
its own or deaf to SIGTERM. This process waits for one end of a pipe whose other end the parent
alone holds: however the parent dies, the pipe closes.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

import psutil

from sdpo.system.interrupts import GRACE_S
from sdpo.system.own_modules import module_path

MARK = "SDPO_STAGE"
"""All processes of a stage are known by this environment variable."""
_ALL_IS_WELL = b"."


@contextmanager
def outlived_by(module: str, *arguments: str, keep: Sequence[int] = ()) -> Iterator[None]:
    """Let `python -m module` wait, while within, in a session of its own, for this process's death.

    It gets ``arguments`` and a descriptor: see :func:`parent_died`. It holds the descriptors
    ``keep`` as well.
    """
    read, write = os.pipe()
    try:
        waiting = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, str(read)],
            env=os.environ | module_path(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(read, *keep),
        )
    finally:
        os.close(read)
    try:
        yield
    finally:
        with suppress(BrokenPipeError):  # it is gone: so be it
            os.write(write, _ALL_IS_WELL)
        os.close(write)
        waiting.wait()


def parent_died(descriptor: int) -> bool:
    """Wait for the end of :func:`outlived_by`; return whether it came by the process's death."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the parent may mean its whole family
    return os.read(descriptor, 1) != _ALL_IS_WELL


def watched(mark: str, *, keep: Sequence[int] = ()) -> AbstractContextManager[None]:
    """Let the death of this process, while within, end all processes that have ``mark``.

    ``keep`` are descriptors of locks, which last until then: not every process of a stage has
    them, since launchers of several close what they do not know.
    """
    return outlived_by("sdpo.system.watchdog", mark, keep=keep)


def marked(mark: str) -> list[psutil.Process]:
    """Return all processes of a stage, whatever their parent and their session are by now."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or gone
    return found


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def sweep(mark: str, *, grace_s: float = GRACE_S) -> None:
    """Terminate what has ``mark``; after ``grace_s`` seconds kill what is left or came since."""
    family = marked(mark)
    for member in family:
        send(member, signal.SIGTERM)
    psutil.wait_procs(family, timeout=grace_s)
    while family := marked(mark):
        for member in family:
            send(member, signal.SIGKILL)
        psutil.wait_procs(family, timeout=1)


def main() -> None:
    """Wait for the parent's word or death; after a death, end the stage."""
    mark, descriptor = sys.argv[1:]
    if parent_died(int(descriptor)):
        sweep(mark)


if __name__ == "__main__":
    main()
