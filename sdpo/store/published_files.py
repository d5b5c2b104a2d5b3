"""Tell the files that a step or guide publishes from the others in its folder.

Beside them are views, which can be made again at any time, what is worked with, and what another
node made there: the pairs that a step has of its own.
"""

from collections.abc import Iterator, Set
from pathlib import Path

from sdpo.store.records import Record
from sdpo.store.run_folder import RunFolder
from sdpo.store.run_paths import is_publishing
from sdpo.store.step_data import nodes_of_data
from sdpo.system.files import UNFINISHED

_CARD = ("README.md", "lineage.json")
_VIEWS = frozenset({"gamma.json", "kl.json", "record.json", "record.json.sha256", *_CARD})
_WORKING = frozenset({"tracking", "resume", "generating"})
_STEP = "step-"


def published_files(run: RunFolder, node: str) -> list[Path]:
    """Return the files in a node's folder that its training gave, for its record."""
    folder, beside = run.path / node, _files_beside(run, node)
    return [
        path
        for path in _finished(folder)
        if path.is_file() and path.name not in _VIEWS and _name(run, path) not in beside
    ]


def strays(run: RunFolder, node: str, record: Record) -> list[str]:
    """Return what a node's folder has and nobody published, as paths below the run."""
    folder = run.path / node
    known = {*record.files, *_files_beside(run, node)}
    found: list[str] = []
    for path in _finished(folder):
        is_link = path.is_symlink()
        is_view = path.name in _VIEWS and path.parent in (folder, folder / "model")
        is_view &= path.is_file() and not is_link
        is_folder = path.is_dir() and not is_link
        if not (is_folder or is_view or _name(run, path) in known):
            found.append(_name(run, path))
    return found


def card_files_of(run: RunFolder, node: str) -> list[Path]:
    """Return card and lineage in the model of a step or guide, where they are there."""
    folder = run.path / node / "model"
    found = [folder / name for name in _CARD] if is_publishing(node) else []
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _finished(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder, in order, without what is worked with."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if parts[0] not in _WORKING and not any(part.startswith(UNFINISHED) for part in parts):
            yield path


def _name(run: RunFolder, path: Path) -> str:
    return str(path.relative_to(run.path))


def _files_beside(run: RunFolder, node: str) -> Set[str]:
    """Return the files that another node made in the folder of a step, as far as is known."""
    if not node.startswith(_STEP):
        return frozenset()
    found: set[str] = set()
    for made in nodes_of_data(int(node.removeprefix(_STEP))):
        record = None if run.is_damaged(made) else run.find(made)
        found |= set(record.files if record else ())
    return found
