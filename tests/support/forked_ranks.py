"""Stages of several processes as forks, one for each rank: real processes over gloo, at once there.

What ``accelerate launch`` would set in the environment of each is set here. That the launcher
itself starts such stages is told by slow tests.
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from forked_stages import STARTER, ForkedStage, forked_stages, stage, umask


@contextmanager
def forked_ranks(*, first: str = "") -> Iterator[None]:
    """Within it, stages start as forks, those of several processes as one fork for each.

    ``first``: code that each of them runs before its own.
    """
    with forked_stages(first=first, start=started):
        yield


def started(command: list[str], **options: object) -> "ForkedStage | ForkedRanks":
    """What a command starts: a stage, or the launcher of several."""
    is_launcher = "sdpo.processes.launcher" in command
    return (ForkedRanks if is_launcher else ForkedStage)(command, **options)  # type: ignore[arg-type]


class ForkedRanks:
    """The part of ``subprocess.Popen`` that the supervisor uses, of a launcher and its ranks."""

    def __init__(
        self,
        command: list[str],
        *,
        first: str,
        stdout: BinaryIO,
        env: dict[str, str],
        **_: object,
    ) -> None:
        count = int(command[command.index("--num_processes") + 1])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self._ranks = [
            STARTER.Process(
                target=stage,
                args=(
                    command[command.index("sdpo.stages") :],
                    {**env, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout.name,
                    first,
                    umask(),
                ),
            )
            for rank in range(count)
        ]
        for rank in self._ranks:
            rank.start()
        self.pid = self._ranks[0].pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """As ``subprocess.Popen.poll``; where one has failed, the others are ended."""
        codes = [rank.exitcode for rank in self._ranks]
        if any(codes):
            for rank in self._ranks:
                with suppress(OSError):
                    if rank.pid and rank.exitcode is None:
                        os.kill(rank.pid, signal.SIGKILL)
                rank.join()
            self.returncode = next(code for code in codes if code)
        elif None not in codes:
            self.returncode = 0
        return self.returncode
