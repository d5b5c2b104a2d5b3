"""Running the parts one after another, each in a process of its own with a time limit.

Parts that measure no time run side by side with others of their kind. The process of the next part
is there before its turn and has imported torch by then.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.gpu.findings import Finding, Settings, read_findings

_LEAST_S = 12.0
"""A part that has less time left is not begun."""
_SPARE_S = 8.0
"""Kept back of the whole time, for ending what runs and for writing."""
_GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the command: a module of this package with ``run(settings)``.

    ``limit_s``: seconds that it may take on a GPU. ``beside``: parts that run at the same time.
    """

    name: str
    what: str
    limit_s: float
    beside: Sequence["Part"] = ()


@dataclass(slots=True)
class Outcome:
    """How a part ended: ``ok``, ``failed``, ``time`` (ended for it) or ``left`` (no time)."""

    name: str
    ended: str
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    fault: str = ""


class Schedule:
    """The parts of one command, and what is left of its time."""

    def __init__(self, settings: Settings, *, seconds: float, patience: float = 1.0) -> None:
        self._settings = settings
        self._until = time.monotonic() + seconds - _SPARE_S
        self._patience = patience
        self._warm: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, parts: Sequence[Part], tell: Callable[[Outcome], None]) -> None:
        """Run ``parts``; ``tell`` hears of each when it has ended."""
        try:
            for number, part in enumerate(parts):
                together = [part, *part.beside]
                if self._until - time.monotonic() < _LEAST_S:
                    for one in together:
                        tell(Outcome(one.name, "left"))
                    continue
                for one in together:
                    self._start(one)
                begun = time.monotonic()
                for one in together:
                    self._go(one)
                if number + 1 < len(parts):
                    self._start(parts[number + 1])
                self._finish(together, begun, tell)
        finally:
            for process in self._warm.values():
                _end(process)

    def _start(self, part: Part) -> None:
        if part.name in self._warm:
            return
        folder = self._settings.path
        with (folder / f"{part.name}.log").open("wb") as log:
            self._warm[part.name] = subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.gpu.child", part.name),
                    *(self._settings.to_json(), str(self._out(part))),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _out(self, part: Part) -> Path:
        return self._settings.path / f"{part.name}.findings.jsonl"

    def _go(self, part: Part) -> None:
        stdin = self._warm[part.name].stdin
        assert stdin is not None
        with suppress(BrokenPipeError), stdin:  # it has died; its log is shown with the outcome
            stdin.write(b"go\n")

    def _finish(
        self, together: Sequence[Part], begun: float, tell: Callable[[Outcome], None]
    ) -> None:
        for one in together:
            process = self._warm[one.name]
            until = min(self._until, begun + self._patience * one.limit_s)
            try:
                code = process.wait(timeout=max(0.1, until - time.monotonic()))
                ended = "ok" if code == 0 else "failed"
            except subprocess.TimeoutExpired:
                ended = "time"
            _end(process)
            del self._warm[one.name]
            log = self._settings.path / f"{one.name}.log"
            tell(
                Outcome(
                    one.name,
                    ended,
                    round(time.monotonic() - begun, 1),
                    list(read_findings(self._out(one))),
                    fault=log.read_text(errors="replace")[-1500:] if ended != "ok" else "",
                )
            )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the process with all that it started, whatever session they are in."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        leader = psutil.Process(process.pid)
        family = [leader, *leader.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=_GRACE_S)
    for member in alive:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    if process.stdin:
        process.stdin.close()
    process.wait()
