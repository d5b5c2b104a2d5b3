"""What of the campaign needs no random byte: disks, clocks, crowds, limits, closed files.

Each is a function of the campaign, how many, and a finished run; each trial is counted where it
held, and told where it did not.
"""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from processes import start

if TYPE_CHECKING:
    from campaign import Campaign

NOBODY = 65534
_MB = 2**20
_TABLES = ("status", "verify", "report", "lineage", "gc", "export", "diff", "current", "promote")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of ``size`` bytes at ``folder``; yields what makes it another size."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)

    def resize(size: int) -> None:
        again = ["mount", "-o", f"remount,size={size}", str(folder)]
        subprocess.run(again, check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full_disks(campaign: "Campaign", count: int, finished: Path) -> None:
    """A run meets the end of its disk somewhere, says so, and goes on when there is room."""
    size = sum(path.stat().st_size for path in (finished / "runs").rglob("*") if path.is_file())
    for number in range(count):
        place = campaign.place("disk")
        share = (number + campaign.drawn.random()) / count
        room = max(64 * 1024, int(share * size))
        with (
            campaign.trial("full disks", f"disk of {share:.2f}"),
            small_disk(place / "runs", room) as resize,
        ):
            code, said = campaign.call("run", place / "recipe.yaml")
            campaign.expect("Traceback" not in said, said[-500:])
            words = ("no space is left", "no inodes are left", "too small")
            campaign.expect(code == 0 or any(word in said for word in words), said[-500:])
            resize(20 * size + 64 * _MB)
            code, said = campaign.call("run", place / "recipe.yaml")
            campaign.expect(code == 0, said[-500:])
            campaign.check(place)
        print(f"disk of {share:.2f} of what a run needs", flush=True)


def _set_times(folder: Path, when: float) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (when, when), follow_symlinks=False)


def clocks(campaign: "Campaign", count: int, finished: Path) -> None:
    """Files come from other times, and a run goes on among them."""
    moments = [datetime(year, 6, 1).timestamp() for year in (2090, 1971)]
    for number in range(count):
        place = campaign.place("clock")
        before, after = (campaign.drawn.sample(moments, 2) for _ in range(2))
        with campaign.trial("clocks", f"clock {number + 1}"):
            running = campaign.run(place)
            stop = campaign.cpu_s * (number + 1) / (count + 1)
            while running.process.poll() is None and running.cpu_s() < stop:
                time.sleep(0.02)
            running.kill_tree()
            _set_times(place, before[0])
            code, said = campaign.call("run", place / "recipe.yaml")
            campaign.expect(code == 0, said[-500:])
            _set_times(place, after[0])
            campaign.check(place)
            campaign.verify(place, whole=True)
        print(f"clock {number + 1}", flush=True)


def crowds(campaign: "Campaign", count: int, finished: Path) -> None:
    """Commands at once on one run: each does its work or says who is at it."""
    place = campaign.place("crowd")
    runs = ("--runs-dir", place / "runs")
    shapes = [
        ("run", place / "recipe.yaml"),
        ("status", *runs),
        ("verify", campaign.name, *runs),
        ("gc", "--yes", *runs),
        ("report", campaign.name, *runs),
        ("resume", campaign.name, *runs),
    ]
    calls = []
    for number in range(count):
        log = place / f"said-{number}.txt"
        calls.append(start(*shapes[number % len(shapes)], log=log))
        time.sleep(campaign.drawn.random())
    for number, running in enumerate(calls):
        with campaign.trial("commands at once", f"command {number + 1}"):
            code = running.wait(900)
            # 2: somebody else is at it; 1: verify and report of a run that is not whole yet.
            campaign.expect(code in (0, 1, 2), running.said[-500:])
            campaign.expect("Traceback" not in running.said, running.said[-500:])
    code, said = campaign.call("run", place / "recipe.yaml")
    campaign.expect(code == 0, said[-500:])
    campaign.check(place)
    campaign.verify(place, whole=True)
    print(f"{count} commands at once", flush=True)


def limits(campaign: "Campaign", count: int, finished: Path) -> None:
    """Too little memory, too few files, too little time: the run ends, and later goes on."""
    kinds = (
        (resource.RLIMIT_AS, [1500 * _MB, 2500 * _MB, 3500 * _MB]),
        (resource.RLIMIT_NOFILE, [24, 40, 64]),
        (resource.RLIMIT_CPU, [2, 6, 10]),
    )
    listed = [(kind, value) for kind, values in kinds for value in values]
    for kind, value in listed[:count]:
        place = campaign.place("limited")
        with campaign.trial("limits", f"limit {kind} of {value}"):
            running = start(
                *("run", place / "recipe.yaml"),
                log=place / "said.txt",
                limit=(kind, value),
            )
            running.wait(900)
            code, said = campaign.call("run", place / "recipe.yaml")
            campaign.expect(code == 0, said[-500:])
            campaign.check(place)
            campaign.verify(place, whole=True)
        print(f"limit {kind} of {value}: then whole", flush=True)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """What is closed to others is closed: root reads everything."""
    if os.getuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def closed_files(campaign: "Campaign", count: int, finished: Path) -> None:
    """A part that cannot be read is named, or not needed, whatever is asked of the run."""
    place = campaign.place("closed")
    for name in ("runs", "cache"):
        shutil.copytree(finished / name, place / name)
    for folder in place.absolute().parents:
        if (
            os.getuid() == 0
            and folder.stat().st_uid == 0
            and folder.is_relative_to(campaign.folder)
        ):
            folder.chmod(folder.stat().st_mode | 0o011)
    for path in (place, *place.rglob("*")):
        if os.getuid() == 0:
            shutil.chown(path, NOBODY)
    runs = ("--runs-dir", str(place / "runs"))
    paths = sorted(path for name in ("runs", "cache") for path in (place / name).rglob("*"))
    for number in range(count):
        path, word = campaign.drawn.choice(paths), _TABLES[number % len(_TABLES)]
        target = {"status": (), "gc": ("--dry-run",), "current": ()}.get(word, (campaign.name,))
        target += (campaign.name,) if word == "diff" else ()
        target += (str(place / f"out-{number}"),) if word == "export" else ()
        mode = path.stat().st_mode
        where = path.relative_to(place)
        with campaign.trial("closed files", f"{word} with {where} closed"):
            path.chmod(0)
            try:
                with _as_nobody():
                    code, said = campaign.call(word, *target, *runs)
            finally:
                path.chmod(mode)
            campaign.expect(code in (0, 1, 2), f"exit code {code}")
            campaign.expect("Traceback" not in said, said[-500:])
    print(f"{count} commands on what is closed", flush=True)
