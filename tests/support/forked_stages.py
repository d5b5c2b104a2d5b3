"""Stages as real child processes without the seconds that importing torch takes each time.

A server process imports what stages import, once; every stage is a fork of it. All else is as in
``sdpo.processes.supervisor``: a process of its own, its session, its log, its environment, its end.
"""

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Protocol

import pytest

STARTER = multiprocessing.get_context("forkserver")
STARTER.set_forkserver_preload(
    [
        "warm_stages",
        "forked_stages",  # what a fork is asked to run is in here, which imports pytest
        *("sdpo.stages.__main__", "sdpo.stages.step", "sdpo.stages.tokenise", "sdpo.stages.kl"),
        *("sdpo.stages.generate", "sdpo.stages.export"),
        *("transformers.models.llama.modeling_llama", "accelerate", "peft"),
        *("pyarrow.dataset", "deepspeed"),  # imported by pyarrow and accelerate when first needed
    ]
)


SERVER = "SDPO_TESTS_SERVER"
"""Processes that tests start find the address of the server in it: they need none of their own."""
_CLIENT: Any = forkserver._forkserver  # type: ignore[attr-defined]


class Started(Protocol):
    """The part of ``subprocess.Popen`` that the supervisor uses."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """As ``subprocess.Popen.poll``."""


@contextmanager
def forked_stages(
    *, first: str = "", start: "Callable[..., Started] | None" = None
) -> Iterator[None]:
    """Within it, stages of one process start as forks of a server that has imported torch.

    ``first``: code that each of them runs before its own. ``start``: what a command starts instead.
    """
    server()
    with pytest.MonkeyPatch.context() as patch:
        quick = SimpleNamespace(
            Popen=partial(start or ForkedStage, first=first),
            DEVNULL=subprocess.DEVNULL,
            STDOUT=subprocess.STDOUT,
        )
        patch.setattr("sdpo.processes.supervisor.subprocess", quick)
        yield


def server() -> dict[str, str]:
    """Let the server run; returns the variable by which processes that start from here find it."""
    if SERVER in os.environ:
        _borrow(os.environ[SERVER])
    else:
        with pytest.MonkeyPatch.context() as patch:
            # What the server is to import it looks for on a path of its own (Python 3.11).
            patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
            forkserver.ensure_running()
    return {SERVER: str(_CLIENT._forkserver_address)}


def _borrow(address: str) -> None:
    """Let this process's stages be forks of another one's server, which outlives this process."""
    if _CLIENT._forkserver_address != address:
        _CLIENT._forkserver_address = address
        _CLIENT._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)
        _CLIENT.ensure_running = resource_tracker.ensure_running


def stage(
    arguments: list[str], environment: dict[str, str], log: str, first: str, mask: int
) -> None:
    """What ``python -m sdpo.stages STAGE.json`` does, in a fork of the server."""
    os.setsid()
    os.umask(mask)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    # Its parent is the server, which ends later than the process that it is to end with.
    starter = int(os.environ.pop("SDPO_PARENT_PID"))
    threading.Thread(target=_end_with, args=(starter,), daemon=True).start()
    sys.argv = arguments
    exec(first, {})
    from sdpo.stages.__main__ import main

    main()


def _end_with(starter: int) -> None:
    """Do to this process what the kernel does to a child that asked to die with its parent."""
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(starter)], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


def umask() -> int:
    """That of this process, which a child has from it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


class ForkedStage:
    """The part of ``subprocess.Popen`` that the supervisor uses."""

    def __init__(
        self,
        command: list[str],
        *,
        first: str,
        stdout: BinaryIO,
        env: dict[str, str],
        **_: object,
    ) -> None:
        assert command[1:3] == ["-m", "sdpo.stages"], "several processes are launched for real"
        self._process = STARTER.Process(
            target=stage, args=(command[2:], env, stdout.name, first, umask())
        )
        self._process.start()
        self.pid = self._process.pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As ``subprocess.Popen.poll``."""
        self.returncode = self._process.exitcode
        return self.returncode
