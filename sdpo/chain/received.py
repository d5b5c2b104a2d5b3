"""Bring into a run's folder what a store has of the run, and refuse where the two differ.

Paths come from a list that somebody else may have written: each has to be one of a run's files, and
the folder that it leads to has to be the run's own. A node that is complete here under another
record than there is not overwritten: two machines have made it, and a person has to choose.
"""

from collections.abc import Mapping
from pathlib import Path

from sdpo.errors import ForeignFolderError, IntegrityError, RunExistsError
from sdpo.events import Listener, ProgressEvent, WarningEvent
from sdpo.remote.index import Group, Index
from sdpo.remote.place import Place
from sdpo.remote.receive import DamagedObjectError, check_room, receive_file
from sdpo.store.kept_files import START, form_of_group, in_order, is_state, step_of_state
from sdpo.store.resume_states import newest_state
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import checksum_path, file_digest


def check_index(run: RunFolder, place: Place, index: Index) -> None:
    """Check that what a store lists can be a run's, before anything of it is written.

    Raises:
        IntegrityError: it names a file that no run has, or lacks run.yaml.
    """
    if START not in index.groups:
        raise IntegrityError(f"{place.url} has no run.yaml: nothing of it can be taken up")
    for name, group in index.groups.items():
        if fault := form_of_group(run, name, list(group)):
            raise IntegrityError(
                f"{place.url} lists `{name}`, and {fault}: nothing of it is received"
            )


def check_same_run(run: RunFolder, place: Place, index: Index) -> None:
    """Check that a run that is here is the one that the store has.

    Raises:
        RunExistsError: it is another one of its name.
    """
    there = index.groups[START][run.run_file.name].sha256
    if run.run_file.is_file() and file_digest(run.run_file) != there:
        raise RunExistsError(
            f"{place.url} has another run of this name, and {run.path} is not a part of it: "
            f"`sdpo resume {place.url}` takes that one up in another folder (--runs-dir), and "
            "--name gives this one another name"
        )


def receive(
    run: RunFolder,
    place: Place,
    index: Index,
    *,
    mine: bool = False,
    listen: Listener = lambda event: None,
) -> set[str]:
    """Receive what the run's folder does not have, and return digests of what was damaged.

    A group of which something is damaged is not received, and told. ``mine``: nobody else has
    written to the store since this folder did, so that what is here counts.

    Raises:
        RunExistsError: a node was made here and there.
        ForeignFolderError: a link in the folder leads elsewhere.
        DiskFullError: there is not enough room.
        StoreError: the store did not answer.
    """
    wanted = {name: group for name, group in index.groups.items() if _is_missing(run, name, group)}
    differs = [name for name in wanted if _differs(run, name, wanted[name])]
    if differs and not mine:
        raise RunExistsError(
            f"run {run.name} went on elsewhere, and {', '.join(differs)} was made here and there: "
            f"move {run.path} away and `sdpo resume {place.url}`, or keep this folder without the "
            "store (store.remote empty)"
        )
    for name in differs:
        del wanted[name]
    files = {path: file for group in wanted.values() for path, file in group.items()}
    check_room(files, run.path)
    damaged: set[str] = set()
    done, total = 0, len(files)
    for name, group in wanted.items():
        try:
            _receive_group(run, place, name, group)
        except DamagedObjectError as error:
            damaged.add(error.sha256)
            listen(WarningEvent(message=f"{error}: {name} is not received"))
        done += len(group)
        listen(
            ProgressEvent(
                phase=f"receive {run.name}", done=done, total=total, unit="files", note=name
            )
        )
    return damaged


def _receive_group(run: RunFolder, place: Place, name: str, group: Group) -> None:
    for path in in_order(run, name, list(group)):
        target = run.path / path
        _check_inside(run, target)
        receive_file(place, path, group[path], target)


def _check_inside(run: RunFolder, target: Path) -> None:
    """Refuse a path whose folder a link here leads out of the run."""
    if not target.parent.resolve().is_relative_to(run.path.resolve()):
        raise ForeignFolderError(
            f"{target.parent} leads out of the run: nothing is received into it. Put a folder in "
            "the link's place"
        )


def _is_missing(run: RunFolder, name: str, group: Group) -> bool:
    """Return whether a group is not here as the store has it."""
    if is_state(name):
        step = step_of_state(name)
        newest = newest_state(run.path / step)
        there = max(path.split("/")[2] for path in group if "/resume/" in path)
        return not _is_complete(run, step) and (newest is None or newest.name < there)
    there = _digest_of(run, name, group)
    return there != _digest_here(run, name) or any(
        not (run.path / path).is_file() or (run.path / path).stat().st_size != file.bytes
        for path, file in group.items()
    )


def _differs(run: RunFolder, name: str, group: Group) -> bool:
    """Return whether a node is complete here, and under another record than in the store."""
    if is_state(name) or name == START:
        return False
    return _is_complete(run, name) and _digest_here(run, name) != _digest_of(run, name, group)


def _is_complete(run: RunFolder, node: str) -> bool:
    return checksum_path(run.record_path(node)).is_file() and not run.is_damaged(node)


def _digest_of(run: RunFolder, name: str, group: Group) -> str:
    return group[str(_counting(run, name).relative_to(run.path))].sha256


def _digest_here(run: RunFolder, name: str) -> str:
    path = _counting(run, name)
    return file_digest(path) if path.is_file() and checksum_path(path).is_file() else ""


def _counting(run: RunFolder, name: str) -> Path:
    """Return the file whose content says whether two groups are the same."""
    return run.run_file if name == START else run.record_path(name)


def without(index: Index, damaged: set[str], *, number: int) -> Index:
    """Return an index without the groups that have a file of ``damaged``, the first of a lease."""
    groups: Mapping[str, Group] = {
        name: group
        for name, group in index.groups.items()
        if damaged.isdisjoint(file.sha256 for file in group.values())
    }
    return Index(index.run, groups, (number, 0))
