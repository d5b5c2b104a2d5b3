"""Write rows of messages in batches (``pairs.parquet`` and its like), and read them back."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.data.schema import MESSAGES, Message, Pair

_GROUP_ROWS = 4096
_GROUP_CHARS = 4_000_000
"""A row group is written at either bound, so that long texts do not pile up in memory."""


class BatchWriter:
    """A writer collects rows (tuples in the schema's order) and writes them as row groups."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=1)
        self._start()

    def _start(self) -> None:
        self._columns = [_column(field.type) for field in self._schema]
        self._rows = self._chars = 0

    def add(self, row: tuple[Any, ...], *, chars: int) -> None:
        """Add a row of about ``chars`` characters."""
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        self._rows += 1
        self._chars += chars
        if self._rows >= _GROUP_ROWS or self._chars >= _GROUP_CHARS:
            self._flush()

    def add_table(self, table: pa.Table) -> None:
        """Write a table as a row group of its own; columns that an older file lacks are null."""
        self._flush()
        for name in self._schema.names:
            if name not in table.schema.names:  # an older file
                nothing = pa.nulls(table.num_rows, self._schema.field(name).type)
                table = table.append_column(name, nothing)
        # The messages of an older file have no rest.
        if table.num_rows:
            self._writer.write_table(table.select(self._schema.names).cast(self._schema))

    def _flush(self) -> None:
        if self._rows:
            arrays = [column.array() for column in self._columns]
            self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def _column(type_: pa.DataType) -> "_Values | _Messages":
    return _Messages() if type_ == MESSAGES else _Values(type_)


class _Values:
    """A column of plain values is being filled."""

    def __init__(self, type_: pa.DataType):
        self._type = type_
        self._values: list[Any] = []
        self.append = self._values.append

    def array(self) -> pa.Array:
        """Return what was appended, as an Arrow array."""
        if pa.types.is_dictionary(self._type):
            return pa.array(self._values, pa.string()).dictionary_encode()
        return pa.array(self._values, self._type)


class _Messages:
    """A column of messages is being filled.

    It is kept as flat lists of text: they are converted several times faster than lists of dicts,
    and the garbage collector has nothing to walk through.
    """

    def __init__(self) -> None:
        self._roles: list[str] = []
        self._contents: list[str] = []
        self._rests: list[str | None] = []
        self._offsets = [0]

    def append(self, messages: Sequence[Message]) -> None:
        """Add the messages of one row."""
        for message in messages:
            self._roles.append(message.role)
            self._contents.append(message.content)
            self._rests.append(message.rest or None)
        self._offsets.append(len(self._roles))

    def array(self) -> pa.Array:
        """Return what was appended, as an Arrow array."""
        roles = pa.array(self._roles, pa.string())
        contents = pa.array(self._contents, pa.string())
        columns = [roles, contents, pa.array(self._rests, pa.string())]
        turns = pa.StructArray.from_arrays(columns, fields=list(MESSAGES.value_type))
        return pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), turns)


def iter_batches(
    path: Path, columns: Sequence[str] | None = None, *, batch_rows: int = 2048
) -> Iterator[pa.RecordBatch]:
    """Yield batches of a Parquet file in its order: all columns, or those of ``columns``."""
    # One thread, as in iter_row_groups.
    with pq.ParquetFile(path) as file:
        columns = columns and [name for name in columns if name in file.schema_arrow.names]
        yield from file.iter_batches(
            batch_size=batch_rows, columns=columns and list(columns), use_threads=False
        )


def iter_row_groups(path: Path) -> Iterator[pa.Table]:
    """Yield the row groups of a Parquet file, all columns, one at a time."""
    with pq.ParquetFile(path) as file:
        for index in range(file.num_row_groups):
            # One thread: each thread keeps buffers of its own, and memory is what counts here.
            yield file.read_row_group(index, use_threads=False)


def iter_pairs(
    path: Path, columns: Sequence[str] | None = None, *, batch_rows: int = 2048
) -> Iterator[pa.RecordBatch]:
    """Yield batches of ``pairs.parquet``; rows of ``to_pylist()`` go to :func:`pair_from_row`."""
    return iter_batches(path, columns, batch_rows=batch_rows)


def pair_from_row(row: dict[str, Any]) -> Pair:
    """Return the pair of one row of ``pairs.parquet`` with all its columns."""
    return Pair(
        pair_id=row["pair_id"],
        prompt_key=row["prompt_key"],
        source=row["source"],
        row=row["row"],
        format=row["format"],
        prompt=messages_from_row(row["prompt"]),
        chosen=messages_from_row(row["chosen"]),
        rejected=messages_from_row(row["rejected"]),
        chosen_score=row["chosen_score"],
        rejected_score=row["rejected_score"],
        strata=dict(row["strata"]),
        template_inputs=row.get("template_inputs") or "",
    )


def messages_from_row(turns: list[dict[str, str]]) -> tuple[Message, ...]:
    """Return the messages of one cell of a message column."""
    return tuple([Message(t["role"], t["content"], t.get("rest") or "") for t in turns])
