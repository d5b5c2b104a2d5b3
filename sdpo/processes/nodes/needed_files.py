"""Say which files nodes have to see: all of them before a stage starts, the chain's after it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sdpo.processes.spec import Spec
from sdpo.system.seen import ExpectedFile, as_here


def files_of(spec: Spec, path: Path) -> list[ExpectedFile]:
    """Return what every node has to see: the specification, and the files that it names.

    Of the run's folder and the cache only that they are there: they grow, and what is in them is
    looked at by who wrote it, or by its name.
    """
    found = {path: None} | dict.fromkeys(_paths_in(spec.model_dump(mode="python")))
    whole = [each for each in found if each not in (spec.run, getattr(spec, "cache", None))]
    folders = [ExpectedFile(path=each) for each in found if each not in whole and each.is_dir()]
    return [*folders, *(file for each in whole if each.exists() for file in as_here(each))]


Looks = dict[Path, tuple[int, int]]
"""Files by their path, with what changes when they are written."""


def look_of(run: Path) -> Looks:
    """Return what is in a run's folder now, without its logs and what is unfinished or hidden."""
    found: Looks = {}
    for folder, folders, names in os.walk(run):
        folders[:] = [name for name in folders if name != "logs" and not name.startswith(".")]
        for name in names:
            with suppress(FileNotFoundError):  # it was unfinished, or replaced
                status = (Path(folder) / name).stat()
                if not name.startswith("."):
                    found[Path(folder) / name] = (status.st_mtime_ns, status.st_size)
    return found


def written_since(before: Looks, run: Path) -> list[ExpectedFile]:
    """Return the files of a run that were written after ``before``, as they are seen here."""
    new = [path for path, look in look_of(run).items() if before.get(path) != look]
    return [file for path in sorted(new) for file in as_here(path)]


def _paths_in(value: object) -> Iterator[Path]:
    """Yield every path in what a specification holds."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _paths_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _paths_in(inner)
