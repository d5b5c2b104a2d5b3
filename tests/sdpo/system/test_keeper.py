"""A foreign program that is kept leaves no process in any death of those around it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sdpo.system.keeper import Kept
from sdpo.system.own_modules import module_path

HELPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
PROGRAM = f"""
import subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", {HELPER!r}], start_new_session=True)
time.sleep(0.2)
print(helper.pid, file=open("helper.tmp", "w"))
import os; os.rename("helper.tmp", "helper")
time.sleep(600)
"""
"""It starts one that is deaf to SIGTERM, in a session of its own."""
STARTER = """
import sys, time
from pathlib import Path
from sdpo.system.keeper import Kept
kept = Kept(sys.argv[1:], environment={"PATH": "/usr/bin"}, folder=Path.cwd())
time.sleep(600)
"""


def wait_for(path: Path) -> int:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    return int(path.read_text(encoding="utf-8"))


def family(helper: int) -> list[psutil.Process]:
    """The helper, the program and the keeper."""
    process = psutil.Process(helper)
    return [process, *process.parents()[:2]]


def assert_gone(processes: list[psutil.Process], *, within_s: float = 15) -> None:
    until = time.monotonic() + within_s
    while any(map(runs, processes)):
        assert time.monotonic() < until, [each for each in processes if runs(each)]
        time.sleep(0.05)


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[bytes]", list[psutil.Process]]]:
    """A process that keeps the program, and all that it has started."""
    process = subprocess.Popen(
        [sys.executable, "-c", STARTER, sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=os.environ | module_path(),
    )
    try:
        yield process, family(wait_for(tmp_path / "helper"))
    finally:
        process.kill()
        process.wait()


def test_a_kept_program_ends_with_the_process_that_keeps_it_when_that_is_killed(
    started: tuple["subprocess.Popen[bytes]", list[psutil.Process]],
) -> None:
    process, below = started
    process.kill()
    assert_gone(below)


def test_a_program_ends_with_its_keeper(
    started: tuple["subprocess.Popen[bytes]", list[psutil.Process]],
) -> None:
    """What it has started is ended by the stage's mark then (``sdpo.system.watchdog``)."""
    _, (helper, program, keeper) = started
    keeper.kill()
    assert_gone([program, keeper])
    helper.kill()


def test_a_program_is_asked_and_then_killed_with_all_that_it_started(tmp_path: Path) -> None:
    kept = Kept([sys.executable, "-c", PROGRAM], environment={"A": "1"}, folder=tmp_path)
    try:
        below = family(wait_for(tmp_path / "helper"))
        assert kept.ended() is None
        assert {each.pid for each in kept.processes()} == {below[0].pid, below[1].pid}
        assert "PYTHONPATH" not in below[1].environ()
    finally:
        kept.end()
    assert_gone(below, within_s=0)


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL)],
)
def test_how_a_program_ended_is_known(tmp_path: Path, code: str, expected: int) -> None:
    kept = Kept([sys.executable, "-c", code], environment={}, folder=tmp_path)
    try:
        until = time.monotonic() + 30
        while kept.ended() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert kept.ended() == expected
    finally:
        kept.end()
