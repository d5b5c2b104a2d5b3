"""Read rows from files, saved data sets and the hub, one by one, whatever their format.

JSON is read here line by line and not by pyarrow: its JSON reader turns text that looks like a
date into timestamps, and its errors name no line. For the same reason CSV values stay text.
Pickles are never read.
"""

import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn, cast

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.data.first_bytes import check_first_bytes, check_written
from sdpo.data.json_array import json_rows
from sdpo.data.lines import LONGEST_LINE, bounded_lines, in_words, names_once
from sdpo.data.separated import csv_rows
from sdpo.errors import DataError, IntegrityError
from sdpo.system.files import read_json
from sdpo.system.json_values import Cell

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Iterator[tuple[int, dict[str, Cell]]]

_LINES = (".jsonl", ".ndjson")
_TABLES = (".csv", ".tsv")
_ARROW = (".parquet", ".arrow")
_KNOWN = (*_LINES, ".json", *_TABLES, *_ARROW)
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib")
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SHARD = re.compile(r"-\d{3,}-of-\d{3,}(-[0-9a-f]+)?$")
_NUMBER = re.compile(r"[-._]\d+$")
_BATCH_ROWS = 1024
_MOST_GROWTH = 200
_UNPACKED_BYTES = 2**28
"""Every gzip file may grow to so many bytes, and a large one to so many times its size.

Text grows tenfold.
"""
_BOM = b"\xef\xbb\xbf"


class _Unpacked(io.RawIOBase):
    """A gzip file is read up to a bound: what grows without end is no data."""

    def __init__(self, file: gzip.GzipFile | BinaryIO, path: Path) -> None:
        self._file, self._path, self._read = file, path, 0
        self._most = max(_UNPACKED_BYTES, _MOST_GROWTH * path.stat().st_size)

    def read(self, size: int = -1, /) -> bytes:
        """Read up to ``size`` bytes; the count of all bytes is checked."""
        return self._counted(self._file.read(size))

    def __next__(self) -> bytes:
        """Return the next line, or as much of it as a line may have and a byte more."""
        line = self._counted(self._file.readline(LONGEST_LINE + 1))
        if not line:
            raise StopIteration
        return line

    def _counted(self, content: bytes) -> bytes:
        self._read += len(content)
        if self._read > self._most:
            raise DataError(
                f"{self._path} grows to more than {_MOST_GROWTH} times its size "
                f"({self._read:,} bytes so far), as no text does: unpack it where it is meant so"
            )
        return content


def read_rows(path: str, *, split: str = "train", subset: str = "", revision: str = "") -> Rows:
    """Yield rows of a source with their numbers: lines from 1 for JSONL and CSV, else rows from 0.

    ``path`` is a data file, a folder saved by ``datasets``, a folder of data files (rows numbered
    through, in the order of the names) or a hub name; ``subset`` and ``revision`` are for the hub.

    Raises:
        DataError: data is missing, empty or malformed; the message names file and line.
    """
    local = Path(path)
    if local.is_file():
        rows = _file_rows(local)
    elif local.is_dir():
        rows = _folder_rows(local, split)
    elif not local.is_absolute() and _HUB_NAME.fullmatch(path) and _suffix(local) not in _KNOWN:
        rows = _hub_rows(path, split=split, subset=subset, revision=revision)
    else:
        raise DataError(_not_found(local))
    return _not_empty(rows, path)


def place(path: str, row: int) -> str:
    """Return where a row is, for a message: ``file.jsonl, line 3``."""
    return f"{path}, {numbered(path, row)}"


def numbered(path: str, row: int) -> str:
    """Return what a row's number counts in its file, with the number: ``line 3`` or ``row 3``."""
    return f"{'line' if _suffix(Path(path)) in (*_LINES, *_TABLES) else 'row'} {row}"


def default_name(path: str) -> str:
    """Return a file's name without the endings of data files, or a folder's or hub data set's."""
    name = Path(path).name
    suffix = _suffix(Path(path))
    if suffix not in _KNOWN:
        return name
    return name[: name.lower().rindex(suffix)]


def _not_empty(rows: Rows, path: str) -> Rows:
    empty, known = True, set[str]()
    for number, row in rows:
        empty = False
        if not row.keys() <= known:
            _check_names(row, place(path, number))
            known |= row.keys()
        yield number, row
    if empty:
        raise DataError(f"{path} is empty: it has no rows")


def _check_names(row: dict[str, Cell], where: str) -> None:
    for name in row:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise DataError(
                f"{where}: the column {name!r} has half of a surrogate pair in its name"
            )


def _not_found(path: Path) -> str:
    path = path.absolute()
    if not path.parent.is_dir():
        return f"no such file or folder: {path} (the folder {path.parent} does not exist either)"
    names = sorted(entry.name for entry in path.parent.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3)
    hint = f"; nearby: {', '.join(near)}" if near else ""
    return f"no such file or folder: {path}{hint}"


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _file_rows(path: Path) -> Rows:
    suffix = _suffix(path)
    if suffix in _PICKLES:
        raise DataError(
            f"{path}: pickles are never read, as they can run code. Save the data as JSONL or "
            "Parquet"
        )
    if suffix in _KNOWN:
        check_written(path)
        check_first_bytes(path)
    if suffix in _ARROW:
        return _arrow_rows(path, suffix)
    if suffix in _KNOWN:
        return _text_rows(path, suffix)
    raise DataError(f"{path} is no data file that is known: {', '.join(_KNOWN)} (also .gz)")


def _text_rows(path: Path, suffix: str) -> Rows:
    zipped = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if zipped else path.open("rb") as opened:
            file = cast(BinaryIO, _Unpacked(opened, path) if zipped else opened)
            if suffix in _LINES:
                yield from _jsonl_rows(file, path)
            elif suffix == ".json":
                yield from json_rows(file, path)
            else:
                yield from csv_rows(file, path, delimiter="\t" if suffix == ".tsv" else ",")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is damaged or no gzip file: {error}") from error


def text_lines(file: Iterable[bytes], path: Path) -> Iterator[tuple[int, str]]:
    """Yield lines from 1, split at line feeds alone: JSON text may hold U+2028 and its like.

    Raises:
        DataError: a line is not UTF-8, or is not bounded as :func:`bounded_lines` says.
    """
    for number, line in bounded_lines(file, path):
        raw = line.removeprefix(_BOM) if number == 1 else line
        try:
            yield number, raw.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}). Save "
                "the file as UTF-8"
            ) from error


def _jsonl_rows(file: BinaryIO, path: Path) -> Rows:
    is_first = True
    for number, line in text_lines(file, path):
        if line.isspace():
            continue
        record = line.rstrip("\r\n")  # so that a text that has no end is told as one
        try:
            value = json.loads(record, object_pairs_hook=names_once)
        except (ValueError, RecursionError) as error:  # an integer of thousands of digits, too
            _refuse_line(record, error, f"{path}, line {number}", is_first=is_first)
        is_first = False
        if not isinstance(value, dict):
            hint = ". A JSON array belongs in a .json file" if isinstance(value, list) else ""
            raise DataError(
                f"{path}, line {number}: not an object with columns but a "
                f"{type(value).__name__}{hint}"
            )
        yield number, value


def _refuse_line(record: str, error: Exception, where: str, *, is_first: bool) -> NoReturn:
    """Say what is wrong with a line, and what to do where it ends before its record does."""
    if not isinstance(error, json.JSONDecodeError):
        raise DataError(f"{where}: malformed JSON: {error}") from error
    kind = {"{": "an object", "[": "a list"}.get(record.lstrip()[:1], "")
    ends_early = bool(kind) and error.pos >= len(record.rstrip())
    if is_first and ends_early:
        raise DataError(
            f"{where} ends in the middle of {kind}. This looks like JSON over several lines, "
            "where a .jsonl file has an object on each: give the file the ending .json, or write "
            "each object on one line"
        ) from error
    if error.msg.startswith("Unterminated"):
        kind, ends_early = "a text", True
    if ends_early:
        raise DataError(
            f"{where} ends in the middle of {kind}: the record was cut off; complete it or "
            "delete the line"
        ) from error
    raise DataError(
        f"{where}: malformed JSON: {in_words(error)} at column {error.colno}"
    ) from error


def _arrow_rows(path: Path, suffix: str) -> Rows:
    try:
        if suffix == ".parquet":
            with pq.ParquetFile(path, memory_map=True) as file:
                yield from _batch_rows(file.iter_batches(batch_size=_BATCH_ROWS))
        else:
            with pa.memory_map(str(path)) as source:
                yield from _batch_rows(_ipc_batches(source))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as {suffix[1:].title()}: {error}") from error


def _ipc_batches(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    """Yield batches of an Arrow file, which may be of the file or of the stream format."""
    if source.read(6) == b"ARROW1":
        reader = pa.ipc.open_file(source)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        source.seek(0)
        yield from pa.ipc.open_stream(source)


def _batch_rows(batches: Iterable[pa.RecordBatch]) -> Rows:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for row in batch.slice(start, _BATCH_ROWS).to_pylist():
                yield number, row
                number += 1


def _folder_rows(folder: Path, split: str) -> Rows:
    if (folder / "dataset_dict.json").is_file():
        splits = _splits(folder / "dataset_dict.json")
        if split not in splits:
            raise DataError(f"{folder} has no split `{split}`, but: {', '.join(splits)}")
        return _saved_rows(folder / split)
    if (folder / "state.json").is_file():
        return _saved_rows(folder)
    files = _data_files(folder, split)
    numbered = (row for file in files for _, row in _file_rows(file))
    return enumerate(numbered)


def _splits(path: Path) -> list[str]:
    try:
        splits = read_json(path)["splits"]
    except (IntegrityError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} does not list the splits of a data set") from error
    if not isinstance(splits, list) or not all(isinstance(name, str) for name in splits):
        raise DataError(f"{path} does not list the splits of a data set")
    return splits


def _data_files(folder: Path, split: str) -> list[Path]:
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and _suffix(file) in _KNOWN and file.name not in _NOT_DATA
    ]
    if not files and (folder / "data").is_dir():
        return _data_files(folder / "data", split)
    if not files:
        names = sorted(entry.name for entry in folder.iterdir())[:8]
        raise DataError(
            f"{folder} holds no data file ({', '.join(_KNOWN)}); it holds: "
            f"{', '.join(names) or 'nothing'}"
        )
    return _of_split(folder, files, split)


def _of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    """Return the files of one split, by their names; all of them where no name tells of a split.

    ``SPLIT-00000-of-00001`` is of exactly that split. Otherwise a name is of a split that it begins
    with, unless files of several such splits would be read as one.
    """
    named = {file: _split_of(file) for file in files}
    exact = [file for file in files if named[file] == split]
    if exact:
        return exact
    near = [f for f in files if re.match(rf"{re.escape(split)}[-._]", f.name) and not _is_shard(f)]
    if near and len({named[file] for file in near}) == 1:
        return near
    if near or any(_is_shard(f) or _of_known_split(f) for f in files):
        raise DataError(
            f"{folder} has no file of the split `{split}`, but of: "
            f"{', '.join(sorted(set(named.values())))}. Set the source's `split` to one of them"
        )
    return files


def _is_shard(file: Path) -> bool:
    return bool(_SHARD.search(_stem(file)))


def _split_of(file: Path) -> str:
    """Return the split that a file's name tells: what comes before its number."""
    return _SHARD.sub("", _stem(file)) if _is_shard(file) else _NUMBER.sub("", _stem(file))


def _stem(file: Path) -> str:
    return default_name(str(file))


def _of_known_split(file: Path) -> bool:
    return bool(re.match(rf"({'|'.join(_SPLITS)})[-._]", file.name))


def _saved_rows(folder: Path) -> Rows:
    import datasets  # takes more than a second; only saved folders and hub names need it

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} is not a data set saved by `datasets`: {error}") from error
    return _dataset_rows(saved)


def _hub_rows(name: str, *, split: str, subset: str, revision: str) -> Rows:
    import datasets  # see above

    where = f"`{name}`" + (f" at {revision}" if revision else "")
    try:
        loaded = datasets.load_dataset(
            name, name=subset or None, split=split, revision=revision or None
        )
    except Exception as error:
        # The client raises errors of many kinds, its HTTP library's own among them.
        raise DataError(
            f"the data set {where} (subset `{subset or 'default'}`, split `{split}`) could not be "
            f"read: there is no such file or folder here, and the hub said: {error}"
        ) from error
    return _dataset_rows(loaded)


def _dataset_rows(dataset: "Dataset") -> Rows:
    tables = dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS)
    return _batch_rows(batch for table in tables for batch in table.to_batches())
