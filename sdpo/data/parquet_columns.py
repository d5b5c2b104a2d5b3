"""Read columns of Parquet files as numpy arrays, a part at a time.

A run has as many rows as its data has pairs, so a row in memory is its bytes and no
object: an id is 16 bytes here and 80 as a string of Python.
"""

import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from partitions import ids_to_bytes
from sdpo.errors import IntegrityError

PART_ROWS = 1 << 14
"""So many rows at a time are turned from one form into another."""

_DIGITS = 32


class Columns:
    """These are the columns of the Parquet file at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: int = pq.read_metadata(path).num_rows

    def ids(self, name: str) -> np.ndarray:
        """Return ids of 32 hex digits as uint64 ``[rows, 2]``, the upper half first.

        Raises:
            IntegrityError: a value has not 32 digits.
        """
        ids = np.empty((self.rows, 2), dtype=np.uint64)
        for start, part in self.parts(name):
            ids[start : start + len(part)] = self._ids(part)
        return ids

    def codes(self, name: str, values: Sequence[str]) -> np.ndarray:
        """Return the position of every row's value among ``values``, int32 ``[rows]``."""
        codes = np.empty(self.rows, dtype=np.int32)
        known = pa.array(values, pa.string())
        for start, part in self.parts(name):
            found = pc.index_in(part, value_set=known)
            codes[start : start + len(part)] = found.to_numpy(zero_copy_only=False)
        return codes

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers or flags, ``[rows]``."""
        kind = pq.read_schema(self.path).field(name).type.to_pandas_dtype()
        numbers = np.empty(self.rows, dtype=kind)
        for start, part in self.parts(name):
            numbers[start : start + len(part)] = part.to_numpy(zero_copy_only=False)
        return numbers

    def parts(self, name: str) -> Iterator[tuple[int, pa.Array]]:
        """Yield the column's values, 16384 rows at a time, with where each part starts."""
        start = 0
        with pq.ParquetFile(self.path) as file:
            # One thread: each thread keeps buffers of its own.
            for batch in file.iter_batches(PART_ROWS, columns=[name], use_threads=False):
                part = batch.column(0)
                if pa.types.is_dictionary(part.type):
                    part = part.dictionary_decode()
                yield start, part
                start += len(part)

    def _ids(self, part: pa.StringArray) -> np.ndarray:
        offsets = np.frombuffer(part.buffers()[1], np.int32)[part.offset :][: len(part) + 1]
        if len(part) and (np.diff(offsets) != _DIGITS).any():
            raise IntegrityError(f"{self.path} has ids that are not {_DIGITS} hex digits")
        digits = memoryview(part.buffers()[2] or b"")[offsets[0] : offsets[-1]]
        return np.frombuffer(binascii.unhexlify(digits), ">u8").reshape(-1, 2)


def hex_column(ids: np.ndarray) -> pa.StringArray:
    """Return ids, uint64 ``[rows, 2]``, as a column of 32 hex digits each."""
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * np.int32(_DIGITS)
    digits = binascii.hexlify(ids_to_bytes(ids))
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(digits))


def write_parts(
    path: Path, schema: pa.Schema, rows: int, part: Callable[[slice], list[pa.Array]]
) -> None:
    """Write a Parquet file of ``rows`` rows, whose columns ``part(slice)`` gives a part at a time.

    The columns are given in the schema's order.
    """
    # No dictionary of ids: each is there once.
    with pq.ParquetWriter(path, schema, use_dictionary=["source"]) as writer:
        for start in range(0, rows, PART_ROWS):
            columns = part(slice(start, min(rows, start + PART_ROWS)))
            writer.write_table(pa.table(columns, schema=schema))


def append_columns(
    source: Path,
    out: Path,
    names: Sequence[str],
    more: Mapping[str, np.ndarray],
    *,
    rows: np.ndarray,
) -> None:
    """Write to ``out`` the columns ``names`` of ``rows`` of the file ``source``, and ``more``.

    ``rows`` ascend; one may be there several times. ``more`` has a value for each of them.
    """
    fields = [pq.read_schema(source).field(name) for name in names]
    added = [pa.field(name, pa.from_numpy_dtype(values.dtype)) for name, values in more.items()]
    start = 0
    with (
        pq.ParquetFile(source) as file,
        pq.ParquetWriter(out, pa.schema(fields + added), use_dictionary=["source"]) as writer,
    ):
        for batch in file.iter_batches(PART_ROWS, columns=list(names), use_threads=False):
            stop = start + batch.num_rows
            part = slice(*np.searchsorted(rows, [start, stop]))
            taken = batch.take(pa.array(rows[part] - start))
            columns = [taken[name] for name in names]
            columns += [pa.array(values[part]) for values in more.values()]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=writer.schema))
            start = stop
