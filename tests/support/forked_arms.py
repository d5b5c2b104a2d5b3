"""Trials that run side by side as forks of this process: real processes, at once there.

Their stages are forks as well. All else is as in ``sdpo.study.arm_process``: a session, a log and
an environment of their own, signals, events. That Python itself starts such a process is told by
slow tests.
"""

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest
from forked_stages import forked_stages


@contextmanager
def forked_arms() -> Iterator[None]:
    """Within it, trials that run side by side, and all stages, start as forks."""
    quick = SimpleNamespace(
        Popen=ForkedArm,
        DEVNULL=subprocess.DEVNULL,
        STDOUT=subprocess.STDOUT,
        TimeoutExpired=subprocess.TimeoutExpired,
    )
    with forked_stages(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdpo.study.arm_process.subprocess", quick)
        yield


class ForkedArm:
    """The part of ``subprocess.Popen`` that a study uses."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdout: BinaryIO,
        env: dict[str, str],
        pass_fds: Sequence[int],
        **_: object,
    ) -> None:
        assert command[1:3] == ["-m", "sdpo.study.arm_process"]
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _close_all_but({stdout.fileno(), *pass_fds})
            os._exit(_run(list(command[2:]), stdout.fileno(), env))

    def poll(self) -> int | None:
        """As ``subprocess.Popen.poll``."""
        return self._look(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        """As ``subprocess.Popen.wait``, but that it always has the time it needs."""
        assert timeout is None or timeout > 0
        return self._look(0)

    def _look(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _close_all_but(kept: set[int]) -> None:
    """Close what a new program would not have: another thread may wait for the end of a pipe."""
    server = forkserver._forkserver._forkserver_alive_fd  # type: ignore[attr-defined]
    kept |= {0, 1, 2, server, resource_tracker.getfd()}
    for each in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if each not in kept:
            with suppress(OSError):  # that of the listing itself
                os.close(each)


def joined_server() -> None:
    """Let a fork of this process start stages by the server that it has from it, which is there."""
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
    resource_tracker._resource_tracker.ensure_running = lambda: None  # type: ignore[attr-defined]


def _run(arguments: list[str], log: int, env: dict[str, str]) -> int:
    """What the process does; the server of stages is that of this process, and is there."""
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(env)
    joined_server()
    sys.argv = arguments
    from sdpo.study.arm_process import main

    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
        return 1
    return 0
