"""Run the parts one after another, each in a process of its own with a time limit.

Parts that measure no time run side by side with others of their kind. The process of the next part
is started before its turn and has imported torch by then. None outlives the command, however that
ends.
"""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.gpu.findings import Finding, Settings, read_findings
from sdpo.system.watchdog import MARK, sweep, watched

_LEAST_S = 12.0
"""A part that has less time left is not begun."""
_SPARE_S = 8.0
"""So much of the whole time is kept back, for ending what runs and for writing."""
_GRACE_S = 4.0
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the command is a module of this package with ``run(settings)``.

    ``limit_s``: seconds that it may take on a GPU. ``beside``: parts that run at the same time.
    """

    name: str
    what: str
    limit_s: float
    beside: Sequence["Part"] = ()


@dataclass(slots=True)
class Outcome:
    """An outcome says how a part ended.

    ``ended``: ``ok``, ``failed``, ``time`` (it took too long), ``stopped`` (with the whole command)
    or ``left`` (there was no time for it). ``fault``: the end of its log, where it failed or took
    too long.
    """

    name: str
    ended: str
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    fault: str = ""


class Schedule:
    """A schedule runs the parts of one command within its time.

    Args:
        settings: what the parts are told.
        seconds: the whole time.
        patience: how many times its limit a part may take.
    """

    def __init__(self, settings: Settings, *, seconds: float, patience: float = 1.0) -> None:
        self._settings = settings
        self._until = time.monotonic() + seconds - _SPARE_S
        self._patience = patience
        self._mark = secrets.token_hex(8)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._running: dict[str, float] = {}

    def run(self, parts: Sequence[Part], tell: Callable[[Outcome], None]) -> None:
        """Run ``parts``; ``tell`` hears of each when it has ended.

        Asked to stop, it ends what runs, and tells what that has found so far.
        """
        with watched(self._mark):
            try:
                self._run(parts, tell)
            except (KeyboardInterrupt, SystemExit):
                _end(self._processes.values())
                for name in list(self._running):
                    tell(self._outcome(name, "stopped"))
                raise
            finally:
                _end(self._processes.values())
                sweep(self._mark, grace_s=_GRACE_S)

    def _run(self, parts: Sequence[Part], tell: Callable[[Outcome], None]) -> None:
        for number, part in enumerate(parts):
            together = [part, *part.beside]
            if self._until - time.monotonic() < _LEAST_S:
                for one in together:
                    tell(Outcome(one.name, "left"))
                continue
            for one in together:
                self._start(one)
            for one in together:
                self._go(one)
            if number + 1 < len(parts):
                self._start(parts[number + 1])
            self._finish(together, tell)

    def _start(self, part: Part) -> None:
        if part.name in self._processes:
            return
        folder = self._settings.path
        with (folder / f"{part.name}.log").open("wb") as log:
            self._processes[part.name] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.gpu.child", part.name),
                    *(self._settings.to_json(), str(self._out(part.name))),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {MARK: self._mark},
            )

    def _out(self, name: str) -> Path:
        return self._settings.path / f"{name}.findings.jsonl"

    def _go(self, part: Part) -> None:
        self._running[part.name] = time.monotonic()
        stdin = self._processes[part.name].stdin
        assert stdin is not None
        with suppress(BrokenPipeError), stdin:  # it has died; its log is shown with the outcome
            stdin.write(b"go\n")

    def _finish(self, together: Sequence[Part], tell: Callable[[Outcome], None]) -> None:
        """Wait for the parts that run, and tell of each as soon as it has ended."""
        limits = {one.name: self._patience * one.limit_s for one in together}
        while self._running:
            for name, begun in list(self._running.items()):
                process = self._processes[name]
                if process.poll() is not None:
                    ended = "ok" if process.returncode == 0 else "failed"
                elif time.monotonic() > min(self._until, begun + limits[name]):
                    _end([process])
                    ended = "time"
                else:
                    continue
                outcome = self._outcome(name, ended)
                del self._processes[name]
                tell(outcome)
            time.sleep(_LOOK_S)

    def _outcome(self, name: str, ended: str) -> Outcome:
        log = self._settings.path / f"{name}.log"
        return Outcome(
            name,
            ended,
            round(time.monotonic() - self._running.pop(name), 1),
            list(read_findings(self._out(name))),
            fault=log.read_text(errors="replace")[-1500:] if ended in ("failed", "time") else "",
        )


def _end(processes: "Collection[subprocess.Popen[bytes]]") -> None:
    """End the processes with all that they started, in whatever session that is."""
    family: list[psutil.Process] = []
    for process in processes:
        if process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                leader = psutil.Process(process.pid)
                family += [leader, *leader.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=_GRACE_S)
    for member in alive:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    for process in processes:
        if process.stdin:
            process.stdin.close()
        process.wait()
