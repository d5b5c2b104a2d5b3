"""Say which files nodes have to see: all of them before a stage starts, the chain's after it."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sdpo.processes.spec import Spec
from sdpo.processes.stage_specs import StepSpec
from sdpo.processes.step_caches import caches_of
from sdpo.store.logp_cache import added_files, cache_folders
from sdpo.system.seen import ExpectedFile, as_here


def files_of(spec: Spec, path: Path) -> list[ExpectedFile]:
    """Return what every node has to see: the specification, and the files that it names.

    Of the run's folder and the cache only that they are there, since they grow; and what a step may
    read there: log-probs under its references.
    """
    found = {path: None} | dict.fromkeys(_paths_in(spec.model_dump(mode="python")))
    whole = [each for each in found if each not in (spec.run, getattr(spec, "cache", None))]
    folders = [ExpectedFile(path=each) for each in found if each not in whole and each.is_dir()]
    known = caches_of(spec) if isinstance(spec, StepSpec) else []
    return [
        *folders,
        *(file for each in whole if each.exists() for file in as_here(each)),
        *(file for cache in known for file in _added(cache.folder)),
    ]


Looks = dict[Path, tuple[int, int]]
"""Files and folders by their path, with what changes when they are written or added to."""


def look_of(spec: Spec) -> Looks:
    """Return what is there now of what a stage writes.

    That is the run's folder without logs and what is unfinished or hidden, and what the stage
    writes elsewhere. Of log-probs in the cache these are the folders: they are only added to.
    """
    found = _look_in(spec.run)
    for place in spec.elsewhere:
        found |= _look_in(place)
    if isinstance(spec, StepSpec):
        found |= {each: (each.stat().st_mtime_ns, 0) for each in cache_folders(spec.cache)}
    return found


def written_since(before: Looks, spec: Spec) -> list[ExpectedFile]:
    """Return the files of a stage that were written after ``before``, as they are seen here."""
    new = [path for path, look in look_of(spec).items() if before.get(path) != look]
    return [
        file for path in sorted(new) for file in (_added(path) if path.is_dir() else as_here(path))
    ]


def _look_in(place: Path) -> Looks:
    found: Looks = {}
    if place.is_file():
        status = place.stat()
        return {place: (status.st_mtime_ns, status.st_size)}
    for folder, folders, names in os.walk(place):
        folders[:] = [name for name in folders if name != "logs" and not name.startswith(".")]
        for name in names:
            with suppress(FileNotFoundError):  # it was unfinished, or replaced
                status = (Path(folder) / name).stat()
                if not name.startswith("."):
                    found[Path(folder) / name] = (status.st_mtime_ns, status.st_size)
    return found


def _added(folder: Path) -> list[ExpectedFile]:
    """Return the files of a folder of log-probs: their names say what is in them."""
    found = []
    for path in added_files(folder):
        with suppress(FileNotFoundError):  # another process has deleted it
            found.append(ExpectedFile(path=path, size=path.stat().st_size))
    return found


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
