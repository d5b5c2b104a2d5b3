"""Stages as real child processes without the seconds that importing torch takes each time.

A server process imports what stages import, once; every stage is a fork of it. All else is as in
``sdpo.processes.supervisor``: a process of its own, its session, its log, its environment, its end.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, Protocol

import pytest

STARTER = multiprocessing.get_context("forkserver")
STARTER.set_forkserver_preload(
    [
        "warm_stages",
        *("sdpo.stages.step", "sdpo.stages.tokenise", "sdpo.stages.kl"),
        *("transformers.models.llama.modeling_llama", "accelerate", "peft"),
        *("pyarrow.dataset", "deepspeed"),  # imported by pyarrow and accelerate when first needed
    ]
)


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
    with pytest.MonkeyPatch.context() as patch:
        # What the server is to import it looks for on a path of its own (Python 3.11).
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        forkserver.ensure_running()
    with pytest.MonkeyPatch.context() as patch:
        quick = SimpleNamespace(
            Popen=partial(start or ForkedStage, first=first),
            DEVNULL=subprocess.DEVNULL,
            STDOUT=subprocess.STDOUT,
        )
        patch.setattr("sdpo.processes.supervisor.subprocess", quick)
        yield


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
    os.environ.pop("SDPO_PARENT_PID")  # its parent is the server
    sys.argv = arguments
    exec(first, {})
    from sdpo.stages.__main__ import main

    main()


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
