"""Tell what a run leaves in its folder before its run.yaml is written, and what is somebody else's.

A marker can be copied, with what else a folder has, to where somebody's own files are: alone it
says that a folder is a run's, but not that the files in it are.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from sdpo.errors import Fault
from sdpo.identity.differences import DIGEST
from sdpo.system import ownership
from sdpo.system.files import checksum_path, file_digest, is_temporary, read_json

_ROWS = re.compile(r"[0-9a-f]{64}\.parquet")
_OF_A_PLAN = {"strategy", "steps", "reserve"}


def foreign_to_a_start(
    folder: Path, *, run_file: Path, plan_file: Path, sources: Path
) -> list[str]:
    """Return the names in a marked folder without ``run_file`` that no start of a run leaves there.

    Those are the lock, temporaries, the digest of the run file, rows that a program gave as objects
    and a plan that was made under the run's name before it.
    """
    if os.path.lexists(run_file) or not folder.is_dir():
        return []
    known = {ownership.MARKER, ownership.LOCK, "lost+found"}
    known |= {checksum_path(run_file).name} if is_seal_of(run_file) else set()
    known |= {plan_file.name} if is_plan(plan_file) else set()
    known |= {sources.name} if _has_rows_alone(sources) else set()
    return sorted(
        path.name for path in folder.iterdir() if path.name not in known and not is_temporary(path)
    )


def is_seal_of(run_file: Path) -> bool:
    """Return whether the file beside ``run_file`` has the form of the digest of one."""
    beside = checksum_path(run_file)
    form = rf"{DIGEST.pattern}  {re.escape(run_file.name)}\n"
    return beside.is_file() and re.fullmatch(form.encode(), beside.read_bytes()) is not None


def is_plan(path: Path) -> bool:
    """Return whether a file is a partition plan in short, as this project writes it."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        content = read_json(path)
    except Fault:
        return False
    return isinstance(content, Mapping) and content.keys() >= _OF_A_PLAN


def _has_rows_alone(folder: Path) -> bool:
    return (
        folder.is_dir()
        and not folder.is_symlink()
        and all(_is_rows(path) or is_temporary(path) for path in folder.iterdir())
    )


def _is_rows(path: Path) -> bool:
    named = _ROWS.fullmatch(path.name) and path.is_file() and not path.is_symlink()
    return bool(named) and file_digest(path) == path.stem
