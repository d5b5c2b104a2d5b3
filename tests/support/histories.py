"""Runs that come from others: how tests make them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import Bench, Outcome
from forked_stages import forked_stages

from sdpo.events import Event
from sdpo.history.replay import ReplayResult, plan_replay, replay_step
from sdpo.hooks import Host
from sdpo.store.run_folder import RunFolder


def replayed(
    run: RunFolder, *overrides: str, step: int, **options: Any
) -> tuple[ReplayResult, Outcome]:
    """Replay a step of a run."""
    events: list[Event] = []
    replay = plan_replay(run, step=step, overrides=overrides, **options)
    with forked_stages():
        result = replay_step(replay, host=Host(listen=events.append))
    return result, Outcome(result.chain, events)


def origin(bench: Bench, name: str = "tiny") -> RunFolder:
    """A run of a bench."""
    return RunFolder(bench.runs / name)


def contents(folder: Path) -> Mapping[str, bytes]:
    """Every file of a run but its lock, whole."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def flip(path: Path, at: int = -1) -> None:
    """Flip a bit of one byte where it is, as a disk would: other links of the file see it too."""
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def write_new_pairs(path: Path, *numbers: int) -> Path:
    """A file of pairs that no demo data has, one for each number."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Count to {n}, please."}],
            "chosen": [{"role": "assistant", "content": f"Here is {n}, as you like it."}],
            "rejected": [{"role": "assistant", "content": f"No. Not {n}."}],
        }
        for n in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
