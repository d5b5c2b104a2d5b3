"""A run's folder knows where everything is, and when a part of it is complete.

A node (a step, the preparation of data, the plan) is complete when its record is there: the record
is written last, by rename, with a digest beside it. It holds the node's identity in full, so that a
difference can be named field by field, and the digest of every file, so that nothing is believed
unchecked. This module knows nothing of models.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import JsonValue, ValidationError

from sdpo.errors import ForeignFolderError, IntegrityError, UserError
from sdpo.events import Listener
from sdpo.store.record_form import form_fault
from sdpo.store.records import NodeRecord, Record, StepRecord, first_fault
from sdpo.store.run_file import RunFile
from sdpo.store.run_head import picked, read_head
from sdpo.store.run_paths import FILES, FOLDERS, PUBLISHING, RunPaths, is_publishing
from sdpo.store.run_proof import (
    MOST_NAMED,
    folders_of_runs,
    is_damaged_run,
    is_proven,
    known_runs,
)
from sdpo.store.run_start import foreign_to_a_start
from sdpo.system import ownership
from sdpo.system.bounded_yaml import load_written_yaml
from sdpo.system.files import (
    checksum_path,
    checksum_text,
    file_digest,
    is_vouched_for,
    json_of,
    read_sealed,
    remove,
    seal,
    write_json,
    write_text,
)
from sdpo.system.json_values import JsonObject
from sdpo.system.locks import hold

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class RunFolder(RunPaths):
    """A run folder gives the records of one run, and what its files are."""

    @property
    def is_own(self) -> bool:
        """Return whether this project made the folder as a run."""
        return ownership.is_own(self.path, "run", proof=is_proven)

    def check_own(self) -> None:
        """Check that the folder is a run, or free to become one. Nothing is written.

        Raises:
            ForeignFolderError: something else is there, or leads out of the folder.
            IntegrityError: it is a run of before there were markers, and run.yaml was changed.
        """
        if not self.is_own:
            if is_damaged_run(self.path):
                self.check_there()
            ownership.check(self.path, "run", proof=is_proven)
        elif others := foreign_to_a_start(
            self.path, run_file=self.run_file, plan_file=self.plan_file, sources=self.sources
        ):
            named = ", ".join(others[:MOST_NAMED])
            raise ForeignFolderError(
                f"{self.path} has the marker of a run and no run.yaml, and holds {named}: nothing "
                "in it is touched. Put run.yaml back, or give the run another name (--name)"
            )
        for link in self._links_out():
            raise ForeignFolderError(
                f"{link} is a link that leads out of the run, to {link.readlink()}: what a run "
                "writes stays in its own folder. Put a folder in the link's place"
            )

    def claim(self) -> None:
        """Make the folder with its marker, or take up the run that is there.

        Raises:
            ForeignFolderError, IntegrityError: as :meth:`check_own`.
        """
        self.check_own()
        ownership.claim(self.path, "run", proof=is_proven)

    def _links_out(self) -> Iterator[Path]:
        """Yield folders that nodes write to and that are links to elsewhere."""
        for name in sorted(filter(FOLDERS.fullmatch, _names(self.path))):
            folder = self.path / name
            for path in (folder, folder / "resume"):
                if path.is_symlink() and not path.resolve().is_relative_to(self.path.resolve()):
                    yield path

    def write_run(self, content: JsonObject) -> None:
        """Publish run.yaml, its digest beside it."""
        text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
        digest = hashlib.sha256(text.encode()).hexdigest()
        # The digest first: where the process ends between the two, there is no run yet.
        write_text(checksum_path(self.run_file), checksum_text(self.run_file, digest))
        write_text(self.run_file, text)

    @property
    def mark(self) -> str:
        """Return by what is known what was made for this run, wherever it is; "" before it began.

        It says when the run was made and of what, and is no other run's.
        """
        return file_digest(self.run_file)[:32] if self.run_file.is_file() else ""

    def read_run(self) -> RunFile:
        """Return what run.yaml says.

        Raises:
            UserError: there is no such run, or another version of this project wrote it.
            IntegrityError: run.yaml is not what was written.
        """
        return RunFile.of(self.check_there(), self.run_file)

    def check_there(self) -> dict[str, JsonValue]:
        """Check that there is a run, and return the content of its run.yaml, of whatever form.

        Raises:
            UserError: there is no such run.
            IntegrityError: run.yaml is not what was written.
        """
        if not self.run_file.is_file():
            raise UserError(f"no run at {self.path.absolute()}{known_runs(self.path)}")
        if _is_changed(self.run_file):
            raise IntegrityError(
                f"{self.run_file} was changed after it was written, or "
                f"{checksum_path(self.run_file).name} was: put the original back, or start a new "
                "run"
            )
        try:
            content = deepcopy(_parsed(self.run_file.read_text(encoding="utf-8")))
        except ValueError as error:  # not YAML, not UTF-8
            raise IntegrityError(f"{self.run_file} is damaged: it is not YAML") from error
        if not isinstance(content, dict):
            raise IntegrityError(f"{self.run_file} is damaged: it is not a mapping")
        return content

    def read_head(self, *keys: str) -> dict[str, JsonValue]:
        """Return the values of these ``keys`` of run.yaml alone, in a tenth of the time.

        A key of a group is given as ``group.key``. Keys that are not there are left out.

        Raises:
            UserError, IntegrityError: as :meth:`read_run`.
        """
        try:
            content = read_sealed(self.run_file)
        except IntegrityError:
            content = None
        if content is None:  # only what this project wrote has its form
            return picked(self.check_there(), keys)
        try:
            return read_head(content.decode(), keys)
        except ValueError as error:
            raise IntegrityError(f"{self.run_file} is damaged: it is not YAML") from error

    def write_record(self, node: str, record: JsonObject, *, files: list[Path]) -> None:
        """Publish a record with the digests of ``files`` (below the run), then its own digest."""
        digests = {str(f.relative_to(self.path)): file_digest(f) for f in sorted(files)}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.publish_record(node, {**record, "files": digests, "created": now})

    def publish_record(self, node: str, record: JsonObject) -> None:
        """Publish a whole record, then its digest, which makes the node complete."""
        path = self.record_path(node)
        checksum_path(path).unlink(missing_ok=True)
        write_json(path, record)
        seal(path)

    def read_record(self, node: str) -> dict[str, JsonValue] | None:
        """Return the record of a node as it was written, or None where the node is not complete.

        Raises:
            IntegrityError: the record is not the one that was written.
        """
        path = self.record_path(node)
        content = read_sealed(path)
        if content is None:
            return None
        record: dict[str, JsonValue] = json_of(content, path)
        if fault := form_fault(node, record):
            raise IntegrityError(f"{path} is no record of {node}: {fault}")
        return record

    def find(self, node: str) -> NodeRecord | None:
        """Return the record of a node, or None where the node is not complete.

        Raises:
            IntegrityError: the record is not the one that was written, or none that this version
                can read.
        """
        return self._read(node, NodeRecord)

    def find_step(self, node: str) -> StepRecord | None:
        """Return the record of a step or guide; otherwise as :meth:`find`."""
        return self._read(node, StepRecord)

    def find_any(self, node: str) -> NodeRecord | StepRecord | None:
        """Return the record of a node, or None, as what it is by its name."""
        return self.find_step(node) if is_publishing(node) else self.find(node)

    def record(self, node: str) -> NodeRecord:
        """Return the record of a node that others rest on.

        Raises:
            IntegrityError: it has none, or otherwise as :meth:`find`.
        """
        return self._there(node, self.find(node))

    def step_record(self, node: str) -> StepRecord:
        """Return the record of a step or guide that others rest on; as :meth:`record`."""
        return self._there(node, self.find_step(node))

    def _read(self, node: str, kind: type[R]) -> R | None:
        content = self.read_record(node)
        try:
            return None if content is None else kind.model_validate(content)
        except ValidationError as error:
            raise IntegrityError(
                f"{self.record_path(node)} is no record that this version of the project can read: "
                f"{first_fault(error)}"
            ) from error

    def _there(self, node: str, record: R | None) -> R:
        if record is None:
            raise IntegrityError(f"{self.record_path(node)} is not there, and others rest on it")
        return record

    def is_damaged(self, node: str) -> bool:
        """Return whether the node has a record that is not the one that was written."""
        try:
            self.read_record(node)
        except IntegrityError:
            return True
        return False

    def seals(self) -> dict[str, bool | None]:
        """Return for every node that has a record whether that is the one that was written.

        It is None where the node is not complete. What the records say is not looked at."""
        return {node: self._seal(node) for node in self.nodes()}

    def _seal(self, node: str) -> bool | None:
        try:
            return None if read_sealed(self.record_path(node)) is None else True
        except IntegrityError:
            return False

    def nodes(self) -> list[str]:
        """Return nodes that have a record, whole or not: those that publish a model come last."""
        names = _names(self.path / "nodes")
        between = sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))
        return [*between, *self.publishing_nodes()]

    def publishing_nodes(self) -> list[str]:
        """Return those of :meth:`nodes` that publish a model: steps and guides."""
        names = filter(PUBLISHING.fullmatch, _names(self.path))
        return sorted(n for n in names if os.path.lexists(f"{self.path}/{n}/record.json"))

    def step_numbers(self) -> list[int]:
        """Return the numbers of the steps that have a folder, in order."""
        names = (path.name for path in self.path.glob("step-*"))
        return sorted(int(m[1]) for name in names if (m := re.fullmatch(r"step-(\d+)", name)))

    def complete_steps(self) -> list[int]:
        """Return the numbers of the steps that have a record which is whole, in order."""
        nodes = {number: f"step-{number}" for number in self.step_numbers()}
        return [n for n, node in nodes.items() if not self.is_damaged(node) and self._has(node)]

    def _has(self, node: str) -> bool:
        return self.read_record(node) is not None

    def clear(self, *, keep: Set[Path]) -> None:
        """Remove what a run writes except ``keep``; the folder too where nothing is left.

        Call it while holding the run. What has another name than a run's parts is somebody else's
        and stays, with the marker. The lock goes last: from then on the name is another's.
        """
        marker = self.path / ownership.MARKER
        for path in set(self.path.iterdir()) - keep:
            is_folder = path.is_dir() and not path.is_symlink()
            if (FOLDERS if is_folder else FILES).fullmatch(path.name):
                remove(path)
        if not keep and set(self.path.iterdir()) <= {self.lock_file, marker}:
            marker.unlink(missing_ok=True)
            self.lock_file.unlink(missing_ok=True)
            with suppress(OSError):  # another process may be starting a run of this name
                self.path.rmdir()

    def damage(self, record: Record | JsonObject) -> list[str]:
        """Return files of a record that are missing or changed, each with what is wrong."""
        faults: list[str] = []
        told = record if isinstance(record, Record) else Record.model_validate(record)
        for name, digest in told.files.items():
            path = self.path / name
            if path.is_symlink() and not path.exists():
                faults.append(f"{name} is missing: it was a link to {path.readlink()}")
            elif not path.is_file():
                faults.append(f"{name} is missing")
            elif file_digest(path) != digest:
                faults.append(f"{name} was changed")
        return faults


@lru_cache(maxsize=8)
def _parsed(text: str) -> JsonValue:
    """Return what a run.yaml says; a command reads that of its run some twenty times."""
    content: JsonValue = load_written_yaml(text)
    return content


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def runs_in(folder: Path) -> list[RunFolder]:
    """Return runs in a folder by name: those with a run.yaml, or that cannot be looked into."""
    return [RunFolder(path) for path in folders_of_runs(folder)]


def runs_of_studies(folder: Path) -> list[RunFolder]:
    """Return the runs of the studies that lie among the runs in a folder, by name."""
    inner = sorted(folder.iterdir()) if folder.is_dir() else []
    return [run for path in inner if ownership.is_marked(path, "study") for run in runs_in(path)]


def _is_changed(path: Path) -> bool:
    """Return whether a file is not what the digest beside it says; without one it is believed."""
    return checksum_path(path).is_file() and not is_vouched_for(path)


@contextmanager
def run_lock(
    run: RunFolder, *, wait: bool = False, listen: Listener = lambda event: None
) -> Iterator[int]:
    """Hold the run for this process; the kernel lets go of it when the process ends.

    Yields the lock's file descriptor: a child that has it holds the run too. With ``wait``, waits
    until another process lets go of it.

    Raises:
        InUseError: another process holds it; the message says which.
    """
    with hold(run.lock_file, what=f"run {run.name}", wait=wait, listen=listen) as handle:
        yield handle
