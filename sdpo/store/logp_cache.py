"""Cache log-probs row by row: what a model gives a pair is computed once.

A cache folder belongs to one key: model digest, arithmetic, device type, attention kernel, layout
and scoring version, and nothing else (not beta, not the learning rate, not the objective). Its rows
are found by row digest (token ids and boundary) and stored in parts of a few hundred; a part is
published whole and named by its content, so a damaged one is noticed and left out. Beside the parts
are notes of checks: which parts agreed with the model itself when it was last in memory, and under
which versions of the libraries. A reference and a probe read the same rows: what is measured of M_t
on D_{t+1} is the next step's reference.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from sdpo.errors import Fault
from sdpo.identity.canonical import digest_of
from sdpo.system.files import publish_file, read_json, write_json


class CheckNumbers(BaseModel):
    """A comparison of cached log-probs with the model found this over ``pairs`` pairs."""

    model_config = ConfigDict(frozen=True, extra="allow")

    max_abs_difference_nats: float
    tolerance_nats: float = 0.0
    pairs: int = 0


class CheckNote(BaseModel):
    """A note says that rows of ``parts`` were compared with the model as ``software`` loads it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    software: dict[str, str]
    parts: list[str]
    numbers: CheckNumbers


RowDigests = Sequence[bytes] | NDArray[np.bytes_]
"""Digests are given as bytes, or as an array ``S16``."""
_MARK = b"scored_for"
_SCHEMA = pa.schema(
    [
        ("row_digest", pa.binary(16)),
        ("chosen_logps", pa.float32()),
        ("rejected_logps", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class RowLogps:
    """Rows have log-probs in nats, fp32 ``[rows]`` each; both are NaN where a row is missing."""

    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Return whether each row was found, bool ``[rows]``."""
        present: np.ndarray = ~np.isnan(self.chosen)
        return present


class LogpCache:
    """A cache holds the rows of one key below ``root``.

    ``scored_for``: the mark of the run that adds to it, which its parts are to have.
    """

    def __init__(self, root: Path, key: Mapping[str, str | int], *, scored_for: str = "") -> None:
        self.folder = root / "logps" / digest_of(dict(key))[:32]
        self.damaged: list[Path] = []
        self._key, self._scored_for = dict(key), scored_for
        self._digests = np.empty(0, dtype="S16")
        self._logps = np.empty((0, 2), dtype=np.float32)
        self._part_of: np.ndarray = np.empty(0, dtype=np.int32)
        self._parts: list[str] = []
        self._read: set[str] = set()
        self._reported: set[str] = set()

    def add(self, row_digests: RowDigests, chosen: np.ndarray, rejected: np.ndarray) -> None:
        """Publish rows as one part."""
        if not (self.folder / "key.json").is_file():  # for people: what the rows are of
            write_json(self.folder / "key.json", self._key)
        mark = {_MARK: self._scored_for} if self._scored_for else {}
        digests = pa.py_buffer(np.array(row_digests, dtype="S16").tobytes())
        table = pa.table(
            [
                pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(16), len(row_digests), [None, digests]
                ),
                pa.array(chosen, pa.float32()),
                pa.array(rejected, pa.float32()),
            ],
            schema=_SCHEMA.with_metadata(mark or None),
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        content = buffer.getvalue()
        name = f"{hashlib.sha256(content).hexdigest()}.parquet"
        with publish_file(self.folder / name) as temporary:
            temporary.write_bytes(content)

    def lookup(self, row_digests: RowDigests) -> RowLogps:
        """Return the rows that are there; NaN for those that are not."""
        self._refresh()
        wanted = np.asarray(row_digests, dtype="S16")
        logps = np.full((len(wanted), 2), np.nan, dtype=np.float32)
        if len(self._digests) and len(wanted):
            at = np.minimum(np.searchsorted(self._digests, wanted), len(self._digests) - 1)
            found = self._digests[at] == wanted
            logps[found] = self._logps[at[found]]
        return RowLogps(logps[:, 0], logps[:, 1])

    def note_check(
        self,
        row_digests: RowDigests,
        *,
        software: Mapping[str, str],
        numbers: Mapping[str, float],
    ) -> None:
        """Note that these rows agree with the model itself, as computed now.

        A part is written at once, so one row of it stands for the others. ``software``: the
        versions the model was loaded with. ``numbers``: what the comparison found.
        """
        parts = sorted(self._part_names(row_digests))
        note = {"software": dict(software), "parts": parts, "numbers": dict(numbers)}
        write_json(self.folder / f"checked-{digest_of(note)[:32]}.json", note)

    def check_of(
        self, row_digests: RowDigests, *, software: Mapping[str, str]
    ) -> CheckNumbers | None:
        """Return the numbers of the worst comparison, if all these rows were checked.

        It is None where a row is missing, or is in a part that no check under these versions
        covers.
        """
        if not self.lookup(row_digests).present.all():
            return None
        unchecked, worst = self._part_names(row_digests), None
        for path in sorted(self.folder.glob("checked-*.json")):
            note = read_note(path)
            if note and note.software == dict(software) and unchecked & set(note.parts):
                unchecked -= set(note.parts)
                found = note.numbers
                if worst is None or found.max_abs_difference_nats > worst.max_abs_difference_nats:
                    worst = found
        return None if unchecked else worst

    def part_of(self, row_digests: RowDigests) -> np.ndarray:
        """Return the number of the part that each row is in, int32 ``[rows]``; all must be
        there."""
        self._refresh()
        wanted = np.asarray(row_digests, dtype="S16")
        return self._part_of[np.searchsorted(self._digests, wanted)]

    def _part_names(self, row_digests: RowDigests) -> set[str]:
        return {self._parts[int(part)] for part in np.unique(self.part_of(row_digests))}

    def _refresh(self) -> None:
        """Read the parts that came since the last look, this process's or another's."""
        new: list[pa.Table] = []
        for part in sorted(self.folder.glob("[!.]*.parquet")):
            if part.name in self._read:
                continue
            content = part.read_bytes() if part.is_file() else b""
            if not _is_named(part, content):
                # Looked at again next time: the same rows computed again take its place.
                if part.name not in self._reported:
                    self.damaged.append(part)
                    self._reported.add(part.name)
                continue
            self._read.add(part.name)
            self._parts.append(part.name)
            new.append(pq.read_table(io.BytesIO(content), schema=_SCHEMA))
        if not new:
            return
        first_new = len(self._parts) - len(new)
        numbers = np.arange(first_new, len(self._parts), dtype=np.int32)
        part_of = np.repeat(numbers, [len(part) for part in new])
        digests = np.concatenate([self._digests, *map(_digests, new)])
        logps = np.concatenate([self._logps, *map(_logps, new)])
        part_of = np.concatenate([self._part_of, part_of])
        self._digests, first = np.unique(digests, return_index=True)
        self._logps, self._part_of = logps[first], part_of[first]


def _digests(part: pa.Table) -> np.ndarray:
    column = part["row_digest"].combine_chunks()
    return np.frombuffer(column.buffers()[1], dtype="S16")[column.offset :][: len(column)]


def _logps(part: pa.Table) -> np.ndarray:
    return np.stack([part["chosen_logps"].to_numpy(), part["rejected_logps"].to_numpy()], 1)


def cache_folders(root: Path) -> list[Path]:
    """Return the folders of all keys below ``root``."""
    return [each for each in (root / "logps").glob("*") if each.is_dir()]


def added_files(folder: Path) -> list[Path]:
    """Return what was added to a key's folder, whole: its parts, and the notes of checks."""
    return sorted((*folder.glob("[!.]*.parquet"), *folder.glob("checked-*.json")))


def rows_by_run(part: Path) -> tuple[int, str]:
    """Return how many rows a part has, and the mark of the run for which they were scored.

    The mark is empty where none was noted.

    Raises:
        OSError, ArrowInvalid: it cannot be read.
    """
    found = pq.read_metadata(part)
    return int(found.num_rows), (found.metadata or {}).get(_MARK, b"").decode()


def part_is_whole(part: Path) -> bool:
    """Return whether a part has the content that its name says."""
    return part.is_file() and _is_named(part, part.read_bytes())


def read_note(path: Path) -> CheckNote | None:
    """Read a note of a check; None where it has not the content that its name says."""
    try:
        note = read_json(path) if path.is_file() else None
        is_own = path.stem == f"checked-{digest_of(note)[:32]}"
        return CheckNote.model_validate(note) if is_own else None
    except (Fault, ValidationError):
        return None


def _is_named(part: Path, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == part.stem
