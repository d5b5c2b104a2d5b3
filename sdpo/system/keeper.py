"""Keep a foreign program and all that it starts: ``python -m sdpo.system.keeper FD PROGRAM …``.

A server of samples is no program of this project: it may start others, in sessions of their own,
and be deaf to SIGTERM. The keeper is the process that orphans among them come back to, so that it
knows them all. It ends them when the process that started it says so or dies, which it hears by a
pipe; and the kernel kills the program when the keeper itself is killed (Linux).
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import psutil

from sdpo.system.own_modules import module_path
from sdpo.system.watchdog import send

GRACE_S = 4.0
"""A program is killed so many seconds after it was asked to end: before a stage is, which asks."""
_POLL_S = 0.1
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_OWN = ("PYTHONPATH", "PYTHONSAFEPATH")
"""These tell the keeper where this project is. A foreign program has modules of its own."""
_SAID = "SDPO_KEPT_"


class Kept:
    """A program that runs, with its keeper, until :meth:`end`."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path
    ) -> None:
        read, self._write = os.pipe()
        said = {_SAID + name: environment[name] for name in _OWN if name in environment}
        try:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "sdpo.system.keeper", str(read), *command],
                env={**environment, **said, **module_path()},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(read,),
            )
        finally:
            os.close(read)

    def ended(self) -> int | None:
        """Return the program's exit code, a negative signal where it was killed; None: it runs."""
        code = self._keeper.poll()
        return -(code - 128) if code is not None and code > 128 else code

    def processes(self) -> list[psutil.Process]:
        """Return the program and what it has started, as far as it runs."""
        try:
            return psutil.Process(self._keeper.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def end(self) -> None:
        """End the program and all that it has started, and wait for it."""
        if self._write >= 0:
            os.close(self._write)
            self._write = -1
        self._keeper.wait()


def _of_program() -> dict[str, str]:
    """Return the environment of the program: the keeper's, without what is the keeper's own."""
    found = {name: value for name, value in os.environ.items() if name not in _OWN}
    said = {name: found.pop(_SAID + name) for name in _OWN if _SAID + name in found}
    return found | said


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def _die_with_keeper() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _start(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            command,
            env=_of_program(),
            start_new_session=True,
            preexec_fn=_die_with_keeper,  # noqa: PLW1509 - the keeper has one thread
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error}", flush=True)
        sys.exit(127)


def _end_all() -> None:
    """End everything that is below the keeper: first asked, then killed."""
    family = psutil.Process().children(recursive=True)
    for member in family:
        send(member, signal.SIGTERM)
    psutil.wait_procs(family, timeout=GRACE_S)
    while family := _running():
        for member in family:
            send(member, signal.SIGKILL)
        psutil.wait_procs(family, timeout=1)


def _running() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]


def _ask_to_end(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main() -> None:
    """Start the program, and wait for its end or for the word, or the death, of who wants it."""
    descriptor, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, _ask_to_end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    program = _start(command)
    try:
        while program.poll() is None:
            if select.select([descriptor], [], [], _POLL_S)[0]:
                break
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_all()
    code = program.wait()
    sys.exit(128 - code if code < 0 else code)


if __name__ == "__main__":
    main()
