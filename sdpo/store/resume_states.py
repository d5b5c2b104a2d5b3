"""Keep resume states on disk: a step's training goes on from one after its process died.

A state is a folder ``step-N/resume/<optimizer step>/`` with tensors in safetensors and the rest as
JSON. ``state.json`` holds the digest of every other file and its own, so a damaged state is noticed
and the one before it, if it is kept, takes its place. This module owns the files; what is in them
is the business of :mod:`sdpo.stages.resume_states`. It needs no torch: the parent looks here too.
"""

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sdpo.errors import Fault, IntegrityError
from sdpo.identity.canonical import digest_of
from sdpo.store.records import Part, StepFacts, first_fault
from sdpo.system.files import file_digest, read_json, remove, temporaries, write_json
from sdpo.system.json_values import JsonObject

STATE_VERSION = 1
"""This is raised when training can no longer resume from a state of older code."""
STATE_FILE = "state.json"
_NAME = re.compile(r"\d{8}")


class StateContent(Part):
    """A state says this of itself.

    ``key``: digests of what it belongs to; ``optimizer_step`` of ``total``; ``facts`` of the record
    to be; seconds of each phase; the software's versions."""

    key: dict[str, str]
    optimizer_step: int
    total: int
    facts: StepFacts
    timings_s: dict[str, float]
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class SavedState:
    """A saved state was found whole."""

    folder: Path
    content: StateContent

    @property
    def optimizer_step(self) -> int:
        """Return the number of optimizer steps done."""
        return self.content.optimizer_step


def states_folder(step: Path) -> Path:
    """Return the folder of the states of a step's folder."""
    return step / "resume"


def state_folder(step: Path, optimizer_step: int) -> Path:
    """Return the folder of the state after ``optimizer_step``."""
    return states_folder(step) / f"{optimizer_step:08d}"


def seal(folder: Path, content: JsonObject, digests: Mapping[str, str]) -> None:
    """Write ``state.json`` beside the files whose ``digests`` are given, as the last of them."""
    sealed = {"state_version": STATE_VERSION, **content, "files": dict(digests)}
    write_json(folder / STATE_FILE, sealed | {"digest": digest_of(sealed)})


def find_state(step: Path, *, key: Mapping[str, str]) -> tuple[SavedState | None, list[str]]:
    """Find the newest whole state of a step's folder that belongs to ``key``, and what was wrong.

    A state that is damaged, or belongs to something else, is removed: it would never be used.
    """
    faults: list[str] = []
    for folder in _folders(step):
        try:
            return SavedState(folder, _verified(folder, key)), faults
        except Fault as error:  # canonical JSON refuses what a flipped digit may have made
            faults.append(str(error))
            shutil.rmtree(folder, ignore_errors=True)
    return None, faults


def _verified(folder: Path, key: Mapping[str, str]) -> StateContent:
    where = f"{folder.parents[1].name}/{folder.parent.name}/{folder.name}"
    path = folder / STATE_FILE
    if not path.is_file():
        raise IntegrityError(f"resume state {where} is damaged: {STATE_FILE} is missing")
    content = read_json(path)
    digest = content.pop("digest", "") if isinstance(content, dict) else ""
    if not digest or digest_of(content) != digest:
        raise IntegrityError(f"resume state {where} is damaged: {STATE_FILE} was changed")
    if content["state_version"] != STATE_VERSION:
        raise IntegrityError(f"resume state {where} was written by another version of this code")
    for name, expected in key.items():
        if content["key"].get(name) != expected:
            raise IntegrityError(
                f"resume state {where} belongs to something else: its {name} is "
                f"{str(content['key'].get(name))[:16]}, not {expected[:16]}"
            )
    for name, expected in content["files"].items():
        file = folder / name
        if not file.is_file():
            raise IntegrityError(f"resume state {where} is damaged: {name} is missing")
        if file_digest(file) != expected:
            raise IntegrityError(f"resume state {where} is damaged: {name} was changed")
    try:
        return StateContent.model_validate(content)
    except ValidationError as error:
        raise IntegrityError(
            f"resume state {where} was written by another version of this code: "
            f"{first_fault(error)}"
        ) from error


def keep_newest(step: Path, *, keep: int) -> None:
    """Remove all but the newest ``keep`` states."""
    for folder in _folders(step)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)


def discard(step: Path) -> None:
    """Remove all states of a step's folder, and what is unfinished beside them."""
    states = states_folder(step)
    for folder in (*_folders(step), *temporaries(states)):
        remove(folder)
    with suppress(OSError):  # there is none, or somebody put something beside the states
        states.rmdir()


def newest_state(step: Path) -> Path | None:
    """Return the folder of the newest state of a step's folder, whole or not; None: it has none."""
    return next(iter(_folders(step)), None)


def _folders(step: Path) -> list[Path]:
    """Return the folders of a step's states, the newest first."""
    found = states_folder(step).glob("[0-9]*")
    return sorted((path for path in found if _NAME.fullmatch(path.name)), reverse=True)


def stored_bytes(step: Path) -> int:
    """Return how many bytes the states of a step's folder take."""
    return sum(path.stat().st_size for path in states_folder(step).rglob("*") if path.is_file())
