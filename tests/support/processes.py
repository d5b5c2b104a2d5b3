"""``sdpo`` in processes of its own, to be ended in every way that processes end."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from forked_stages import server

ROOT = Path(__file__).resolve().parents[2]
# A shell that starts the tests in the background lets them, and all below them, ignore SIGINT.
_MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from flows.cli.app import main
main()
"""
_QUICK_MAIN = f"""
from forked_stages import forked_stages
with forked_stages():
    {"    ".join(_MAIN.strip().splitlines(keepends=True))}
"""


@dataclass(frozen=True, slots=True)
class Running:
    """A call of the command line that runs."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def said(self) -> str:
        """What it printed until now, with runs of blanks as one blank."""
        return " ".join(self.log.read_text(encoding="utf-8", errors="replace").split())

    def wait(self, timeout_s: float = 150) -> int:
        """Its exit code."""
        return self.process.wait(timeout_s)

    def until(self, happened: Callable[[], bool], timeout_s: float = 120) -> None:
        """Wait until something has happened, which must be before the call ends."""
        end = time.monotonic() + timeout_s
        while not happened():
            assert self.process.poll() is None, f"it ended before that:\n{self.said}"
            assert time.monotonic() < end, f"that did not happen:\n{self.said}"
            time.sleep(0.01)

    def cpu_s(self) -> float:
        """Seconds of computing of the call and all that it started, until now."""
        total = 0.0
        with suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.process.pid)
            for member in [leader, *leader.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    total += sum(member.cpu_times()[:4])  # its own, and of those that ended
        return total

    def kill_tree(self) -> None:
        """SIGKILL to the call and to everything that it started."""
        with suppress(psutil.NoSuchProcess):
            leader = psutil.Process(self.process.pid)
            leader.suspend()  # it must not start another one meanwhile
            members = leader.children(recursive=True)
            for member in [*members, leader]:
                with suppress(psutil.NoSuchProcess):
                    member.send_signal(signal.SIGKILL)
            self.process.wait()
            psutil.wait_procs(members, timeout=30)  # until then they hold the run


def start(
    *arguments: Any, log: Path, quick: bool = False, limit: tuple[int, int] | None = None
) -> Running:
    """``sdpo`` with ``arguments``, in a session of its own; what it prints goes to ``log``.

    ``quick``: its stages start as forks, where it is not about how they start and end.
    ``limit``: one of the system's (``resource.RLIMIT_*``) for it and all that it starts.
    """
    folders = (str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    environment = (
        os.environ | {"PYTHONPATH": os.pathsep.join(folders)} | (server() if quick else {})
    )
    main = _QUICK_MAIN if quick else _MAIN
    limited = f"import resource; resource.setrlimit({limit[0]}, ({limit[1]},) * 2)" if limit else ""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", limited + main, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    return Running(process, log)


def is_free(lock: Path) -> bool:
    """Whether nobody holds a lock that somebody held."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def stages_of(run: Path) -> list[psutil.Process]:
    """Processes that work for a run's stages."""
    logs = f"{run.absolute()}/logs/"
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and any(part.startswith(logs) for part in process.cmdline()):
                found.append(process)
    return found
