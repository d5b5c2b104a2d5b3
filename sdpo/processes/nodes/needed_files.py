"""Say which files every node of a stage has to see before it starts."""

from collections.abc import Iterator
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
