"""Tell which files of a run are kept elsewhere too, and which names such a list may have.

Kept is what a machine needs that takes the run up: run.yaml with the run's own rows, every complete
node with its record last, and where asked the newest resume state of a step that is not complete.
Logs, locks and the caches stay where they are: caches are made again.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from sdpo.errors import IntegrityError
from sdpo.store.budget import BUDGET_FILE
from sdpo.store.published_files import card_files_of
from sdpo.store.resume_states import STATE_FILE, newest_state, states_folder
from sdpo.store.run_folder import RunFolder
from sdpo.store.run_paths import is_part
from sdpo.system.files import UNFINISHED, checksum_path, json_of, read_small, write_json

START = "run"
"""The group of run.yaml and the run's own rows has this name."""
REMOTE_FILE = "remote.json"
_STATE = "resume "
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\\]")
_LONGEST = 255
Files = dict[str, tuple[Path, str]]
"""Files by their path below the run; the digest is what its record says, "" where none does."""


class RemoteFile(BaseModel):
    """A run's ``remote.json`` says where it is kept.

    ``token``: under which this folder owned it last. ``received``: the folder began with what the
    store had, so that paths in run.yaml are those of another machine.
    """

    model_config = ConfigDict(frozen=True)

    url: str
    token: str = ""
    received: bool = False


def read_remote(run: RunFolder) -> RemoteFile | None:
    """Return where a run is kept, by its ``remote.json``; None where it has none.

    Raises:
        IntegrityError: the file is damaged.
    """
    path = run.path / REMOTE_FILE
    if not path.is_file():
        return None
    try:
        return RemoteFile.model_validate(json_of(read_small(str(path)), path))
    except ValidationError as error:
        raise IntegrityError(
            f"{path} does not say where the run is kept: remove it, and name the store again "
            "(--set store.remote=...)"
        ) from error


def write_remote(run: RunFolder, said: RemoteFile) -> None:
    """Write a run's ``remote.json``."""
    write_json(run.path / REMOTE_FILE, said.model_dump())


def kept_files(run: RunFolder, *, states: bool) -> dict[str, Files]:
    """Return what of a run is to be kept now, by group, in the order in which nodes were complete.

    A node that is damaged, or being made again, is left out. With ``states``, a resume state each
    of the steps that are not complete come last.
    """
    groups = {START: _start(run)}
    created: dict[str, str] = {}
    found: dict[str, Files] = {}
    for node in run.nodes():
        try:
            record = run.find_any(node)
        except IntegrityError:
            continue
        if record is not None:
            found[node] = _node_files(run, node, record.files)
            created[node] = record.created
    groups |= {node: found[node] for node in sorted(found, key=lambda node: created[node])}
    return groups | ({} if not states else _states(run, found))


def is_state(group: str) -> bool:
    """Return whether a group of this name is a resume state."""
    return group.startswith(_STATE)


def step_of_state(group: str) -> str:
    """Return the step or guide that a resume state's group is of."""
    return group.removeprefix(_STATE)


def form_of_group(run: RunFolder, group: str, files: list[str]) -> str:
    """Return why a group of these files cannot be one of ``run``; "" where it can.

    What comes from elsewhere is not believed: a path leads nowhere else than to where a run has
    files of its own.
    """
    wrong = next((path for path in files if not is_part(path) or not _is_plain(path)), "")
    if wrong:
        return f"{wrong!r} is no file of a run"
    if group == START:
        known = {run.run_file.name, checksum_path(run.run_file).name}
        if not known <= set(files):
            return "it has no run.yaml with its digest"
        inside = all(path in known or path.startswith("sources/") for path in files)
        return "" if inside else "it has more than run.yaml and the run's own rows"
    if is_state(group):
        step = step_of_state(group)
        state = rf"{re.escape(step)}/(resume/\d{{8}}/[^/]+|{BUDGET_FILE})"
        is_one = _NODE.fullmatch(step) and all(re.fullmatch(state, path) for path in files)
        return "" if is_one else "it is no resume state"
    if not _NODE.fullmatch(group):
        return "it is no node"
    record = run.record_path(group)
    missing = {_name(run, record), _name(run, checksum_path(record))} - set(files)
    return f"it has no {sorted(missing)[0]}" if missing else ""


def in_order(run: RunFolder, group: str, files: list[str]) -> list[str]:
    """Return the files of a group in the order in which they are written, what counts last."""
    record = run.record_path(group) if not is_state(group) and group != START else None
    last = [_name(run, record), _name(run, checksum_path(record))] if record else []
    if group == START:  # as a run that begins writes them
        last = [checksum_path(run.run_file).name, run.run_file.name]
        return [*last, *sorted(set(files) - set(last))]
    if is_state(group):
        last = sorted(path for path in files if path.endswith(f"/{STATE_FILE}"))
    return [*sorted(set(files) - set(last)), *last]


def _start(run: RunFolder) -> Files:
    seal = checksum_path(run.run_file)
    paths = [*([seal] if seal.is_file() else []), run.run_file, *_below(run.sources)]
    return {_name(run, path): (path, "") for path in paths}


def _node_files(run: RunFolder, node: str, recorded: dict[str, str]) -> Files:
    files = {name: (run.path / name, digest) for name, digest in recorded.items()}
    record = run.record_path(node)
    beside = [path for path in card_files_of(run, node) if _name(run, path) not in files]
    last = [record, checksum_path(record)]
    return files | {_name(run, path): (path, "") for path in (*beside, *last)}


def _states(run: RunFolder, complete: dict[str, Files]) -> dict[str, Files]:
    groups: dict[str, Files] = {}
    for folder in sorted(run.path.glob("*/resume")):
        step = folder.parent
        state = newest_state(step) if states_folder(step) == folder else None
        if state is None or step.name in complete:
            continue
        budget = step / BUDGET_FILE
        paths = [*_below(state), *([budget] if budget.is_file() else [])]
        groups[f"{_STATE}{step.name}"] = {_name(run, path): (path, "") for path in paths}
    return groups


def _below(folder: Path) -> Iterator[Path]:
    if folder.is_dir() and not folder.is_symlink():
        found = sorted(folder.iterdir())
        yield from (p for p in found if p.is_file() and not p.name.startswith(UNFINISHED))


def _is_plain(path: str) -> bool:
    parts = path.split("/")
    return not _UNPRINTABLE.search(path) and all(
        part
        and part not in (".", "..")
        and len(part.encode()) <= _LONGEST
        and not part.startswith(UNFINISHED)
        for part in parts
    )


def _name(run: RunFolder, path: Path) -> str:
    return str(PurePosixPath(path.relative_to(run.path)))
