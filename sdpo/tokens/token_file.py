"""Read the stored token ids: their schema, memory-mapped access, and statistics of their lengths.

It reads what :mod:`sdpo.tokens.tokenise` writes, and imports neither torch nor transformers.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdpo.errors import Fault, IntegrityError
from sdpo.tokens.report import TokenReport

Ids = NDArray[np.int32]
"""Token ids or lengths are int32 ``[n]``."""

Flags = NDArray[np.bool_]
"""Flags are one per row, bool ``[rows]``."""

Digests = NDArray[np.bytes_]
"""Row digests are ``S16`` ``[rows]``: 16 bytes each.

numpy strips zero bytes at the end of single values, so they are compared and hashed as arrays.
"""

_IDS = pa.list_(pa.int32())

TOKENS_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("row_digest", pa.binary(16)),
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("chosen_truncated", pa.bool_()),
        ("rejected_truncated", pa.bool_()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""``tokens.arrow`` has these columns.

A side's sequence is prompt_ids + its own ids, which are the scored ones; a row with a reason has
empty lists and no digest, and a ``detail`` for people.
"""

SUPERVISED_TOKENS_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("prompt_key", pa.string()),
        ("prompt_ids", _IDS),
        ("completion_ids", _IDS),
        ("truncated", pa.bool_()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""``supervised_tokens.arrow`` has these columns."""


def _without_details(schema: pa.Schema) -> pa.Schema:
    """Return the columns of a file that version 0.1 wrote."""
    return schema.remove(schema.get_field_index("detail"))


def _with_details(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.append_column("detail", pa.nulls(batch.num_rows, pa.string()))


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token row is a usable pair: ids int32 ``[P]``, ``[C]``, ``[R]``, views of the file."""

    pair_id: str
    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    chosen_truncated: bool
    rejected_truncated: bool
    row_digest: bytes


@dataclass(frozen=True, slots=True)
class SupervisedRow:
    """A supervised row is a usable example: ids int32 ``[P]``, ``[C]``, views of the file."""

    example_id: str
    prompt_ids: Ids
    completion_ids: Ids
    truncated: bool


def row_digest(prompt_ids: Ids, chosen_ids: Ids, rejected_ids: Ids) -> bytes:
    """Return blake2b-128 of what a pair's log-probs depend on besides the model.

    It is over little-endian int32: the boundary and the lengths of both sequences, then both
    sequences.
    """
    boundary, chosen, rejected = len(prompt_ids), len(chosen_ids), len(rejected_ids)
    header = np.array([boundary, boundary + chosen, boundary + rejected], dtype="<i4")
    content = [header, prompt_ids, chosen_ids, prompt_ids, rejected_ids]
    return hashlib.blake2b(np.concatenate(content).astype("<i4").tobytes(), digest_size=16).digest()


class _Table:
    """A table is an Arrow IPC file of ids, memory-mapped: ids are read only when asked for."""

    schema: ClassVar[pa.Schema]

    def __init__(self, path: Path, batches: list[pa.RecordBatch], metadata: dict[str, str]) -> None:
        self.path = path
        self.metadata = metadata
        self._batches = batches
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)], dtype=np.int64)
        self._start_list: list[int] = self._starts.tolist()
        self._views: dict[tuple[int, str], tuple[Ids, Ids]] = {}

    @classmethod
    def open(cls, path: Path, *more: Path) -> Self:
        """Map the file, and ``more`` of them whose rows are numbered on; the report is the first's.

        Raises:
            IntegrityError: one is not there, is damaged or has other columns.
        """
        batches, metadata = cls._map(path)
        for other in more:
            batches += cls._map(other)[0]
        return cls(path, batches, metadata)

    @classmethod
    def _map(cls, path: Path) -> tuple[list[pa.RecordBatch], dict[str, str]]:
        """Return what is in a file: batches of rows, and metadata."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise IntegrityError(f"{path} cannot be read as stored tokens: {error}") from error
        if reader.schema.equals(_without_details(cls.schema)):
            batches = [_with_details(batch) for batch in batches]
        elif not reader.schema.equals(cls.schema):
            raise IntegrityError(f"{path} is another kind of file: it has {reader.schema.names}")
        metadata = {k.decode(): v.decode() for k, v in (reader.schema.metadata or {}).items()}
        return batches, metadata

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def report(self) -> TokenReport:
        """Return what tokenising found."""
        return TokenReport(**json.loads(self.metadata["report"]))

    @cached_property
    def usable(self) -> Flags:
        """Return which rows have tokens, bool ``[rows]``."""
        return _bools([batch["reason"].is_null() for batch in self._batches])

    @cached_property
    def reasons(self) -> dict[str, str]:
        """Return why the other rows have none, by their id."""
        column = self.schema.names[0]
        return {
            batch[column][int(i)].as_py(): batch["reason"][int(i)].as_py()
            for batch in self._batches
            for i in np.flatnonzero(batch["reason"].is_valid().to_numpy(zero_copy_only=False))
        }

    def rejected(self) -> Iterator[tuple[int, str, str]]:
        """Yield the rows that have no tokens, with the reason and its detail, in order."""
        for start, batch in zip(self._start_list, self._batches, strict=False):
            reasons, details = batch["reason"], batch["detail"]
            for row in np.flatnonzero(reasons.is_valid().to_numpy(zero_copy_only=False)).tolist():
                yield start + row, reasons[row].as_py(), details[row].as_py()

    def _strings(self, column: str) -> list[str]:
        return [value for batch in self._batches for value in batch[column].to_pylist()]

    def _flags(self, column: str) -> Flags:
        return _bools([batch[column] for batch in self._batches])

    def _lengths(self, column: str) -> Ids:
        parts = [np.diff(self._view(k, column)[0]) for k in range(len(self._batches))]
        return np.concatenate([np.empty(0, dtype=np.int32), *parts])

    def _view(self, batch: int, column: str) -> tuple[Ids, Ids]:
        """Return offsets and values of a list column of a batch, as views of the file."""
        if (batch, column) not in self._views:
            values = self._batches[batch][column]
            self._views[batch, column] = (values.offsets.to_numpy(), values.values.to_numpy())
        return self._views[batch, column]

    def _ids(self, index: int, column: str) -> Ids:
        batch, row = self._at(index)
        offsets, values = self._view(batch, column)
        return values[offsets[row] : offsets[row + 1]]

    def _at(self, index: int) -> tuple[int, int]:
        """Return the batch of a row, and the row in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} in {self.path}")
        batch = bisect_right(self._start_list, index) - 1
        return batch, index - self._start_list[batch]

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the same of a usable row."""
        batch, row = self._at(index)
        reason = self._batches[batch]["reason"][row].as_py()
        if reason is not None:
            raise Fault(f"row {index} of {self.path} has no tokens: {reason}")
        return batch, row


class TokenFile(_Table):
    """A token file has the tokens of all pairs of a run, in the order of ``pairs.parquet``."""

    schema = TOKENS_SCHEMA

    @cached_property
    def pair_ids(self) -> list[str]:
        """Return the ids of all rows, usable or not."""
        return self._strings("pair_id")

    @cached_property
    def prompt_lengths(self) -> Ids:
        """Return the tokens of the prompts, int32 ``[rows]``; 0 for a row that is not usable."""
        return self._lengths("prompt_ids")

    @cached_property
    def chosen_lengths(self) -> Ids:
        """Return the scored tokens of the chosen sides, int32 ``[rows]``."""
        return self._lengths("chosen_ids")

    @cached_property
    def rejected_lengths(self) -> Ids:
        """Return the scored tokens of the rejected sides, int32 ``[rows]``."""
        return self._lengths("rejected_ids")

    @cached_property
    def chosen_truncated(self) -> Flags:
        """Return which rows had their chosen side cut, bool ``[rows]``."""
        return self._flags("chosen_truncated")

    @cached_property
    def rejected_truncated(self) -> Flags:
        """Return which rows had their rejected side cut, bool ``[rows]``."""
        return self._flags("rejected_truncated")

    @cached_property
    def sequence_lengths(self) -> Ids:
        """Return the tokens of the prompts with the longer side, int32 ``[rows]``."""
        return self.prompt_lengths + np.maximum(self.chosen_lengths, self.rejected_lengths)

    def prompt_ids(self, index: int) -> Ids:
        """Return the prompt's ids of row ``index``, a read-only view; none if it is not usable."""
        return self._ids(index, "prompt_ids")

    def chosen_ids(self, index: int) -> Ids:
        """Return the chosen side's scored ids likewise."""
        return self._ids(index, "chosen_ids")

    def rejected_ids(self, index: int) -> Ids:
        """Return the rejected side's scored ids likewise."""
        return self._ids(index, "rejected_ids")

    def pair_id(self, index: int) -> str:
        """Return the id of row ``index``."""
        batch, row = self._at(index)
        value: str = self._batches[batch]["pair_id"][row].as_py()
        return value

    def digests(self, rows: np.ndarray) -> Digests:
        """Return the digests of these rows, in their order.

        Raises:
            Fault: one of them is not usable.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if len(unusable := rows[~self.usable[rows]]):
            self._locate(int(unusable[0]))
        digests = np.empty(len(rows), dtype="S16")
        batch = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(batch, kind="stable")
        edges = np.flatnonzero(np.diff(batch[order], prepend=-1, append=-1))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            members = order[start:stop]
            number = int(batch[members[0]])
            column = self._batches[number]["row_digest"]
            stored = np.frombuffer(column.buffers()[1], dtype="S16")[column.offset :]
            digests[members] = stored[rows[members] - self._starts[number]]
        return digests

    def row(self, index: int) -> TokenRow:
        """Return the tokens of row ``index``, zero-copy.

        Raises:
            IndexError: there is no such row.
            Fault: the row is not usable.
        """
        batch, row = self._locate(index)
        columns = self._batches[batch]
        return TokenRow(
            pair_id=columns["pair_id"][row].as_py(),
            prompt_ids=self.prompt_ids(index),
            chosen_ids=self.chosen_ids(index),
            rejected_ids=self.rejected_ids(index),
            chosen_truncated=columns["chosen_truncated"][row].as_py(),
            rejected_truncated=columns["rejected_truncated"][row].as_py(),
            row_digest=columns["row_digest"][row].as_py(),
        )


class SupervisedTokenFile(_Table):
    """A supervised token file has the tokens of the supervised examples."""

    schema = SUPERVISED_TOKENS_SCHEMA

    @cached_property
    def example_ids(self) -> list[str]:
        """Return the ids of all rows, usable or not."""
        return self._strings("example_id")

    @cached_property
    def prompt_keys(self) -> list[str]:
        """Return the prompt keys of all rows, by which the reserve is kept out."""
        return self._strings("prompt_key")

    @cached_property
    def prompt_lengths(self) -> Ids:
        """Return the tokens of the prompts, int32 ``[rows]``; 0 for a row that is not usable."""
        return self._lengths("prompt_ids")

    @cached_property
    def completion_lengths(self) -> Ids:
        """Return the scored tokens, int32 ``[rows]``."""
        return self._lengths("completion_ids")

    def row(self, index: int) -> SupervisedRow:
        """Return the tokens of row ``index``, zero-copy.

        Raises:
            IndexError: there is no such row.
            Fault: the row is not usable.
        """
        batch, row = self._locate(index)
        columns = self._batches[batch]
        return SupervisedRow(
            example_id=columns["example_id"][row].as_py(),
            prompt_ids=self._ids(index, "prompt_ids"),
            completion_ids=self._ids(index, "completion_ids"),
            truncated=columns["truncated"][row].as_py(),
        )


def _bools(columns: list[pa.BooleanArray]) -> Flags:
    # pyarrow takes bits apart with pandas, whose import takes a third of a second.
    parts = [column.cast(pa.uint8()).to_numpy().astype(np.bool_) for column in columns]
    return np.concatenate([np.empty(0, dtype=np.bool_), *parts])
