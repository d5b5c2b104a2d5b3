"""Read rows of CSV and TSV files as pandas, R and spreadsheets write them.

Values stay text. The separator is the file's own where the header shows another than the name
promises; an index column without a name, and R's row names without a column in the header, are left
out.
"""

import csv
import re
import sys
from collections.abc import Iterator
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from sdpo.data.lines import bounded_lines
from sdpo.errors import DataError
from sdpo.system.json_values import Cell

_BOMS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))
_SEPARATORS = (";", "\t", "|")


def csv_rows(
    file: BinaryIO, path: Path, *, delimiter: str
) -> Iterator[tuple[int, dict[str, Cell]]]:
    """Yield rows with their lines, from 1.

    Raises:
        DataError: it is malformed, or of an unknown encoding; the message names file and line.
    """
    csv.field_size_limit(sys.maxsize)  # the default, 131072 characters, is less than one story
    lines = _lines(file, path)
    first, skipped = next(lines, ""), 0
    while first and first.isspace():  # as pandas does
        first, skipped = next(lines, ""), skipped + 1
    if re.fullmatch(r"sep=.[\r\n]*", first, re.IGNORECASE):
        # A spreadsheet's own line, which names the separator.
        delimiter, first, skipped = first[4], next(lines, ""), skipped + 1
    elif delimiter not in first:
        delimiter = next((s for s in _SEPARATORS if s in first), delimiter)
    # strict: without it a quote that is never closed swallows the rest of the file unnoticed.
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    number = skipped + 1
    try:
        header = next(reader, [])
        number = skipped + reader.line_num + 1
        for index, values in enumerate(row for row in reader if row):
            if index == 0:
                header, names = _header(header, values, path, line=skipped + 1)
            if len(values) != len(header):
                raise DataError(
                    f"{path}, line {number}: {len(values)} fields, but the header has "
                    f"{len(names)} ({', '.join(names)})"
                )
            row = dict(zip(header, values, strict=True))
            yield number, {name: row[name] for name in names}
            number = skipped + reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {number}: malformed CSV: {_in_words(error)}") from error


def _in_words(error: csv.Error) -> str:
    """Return what the reader says, with what to do about what programs write."""
    said = str(error)
    if "expected after" in said:
        return (
            f"{said}. A quotation mark within a field is written twice there, not with a backslash "
            "(pandas: `doublequote=True`)"
        )
    if "new-line character seen" in said:
        return "its lines end in carriage returns alone: save it with line feeds"
    if "unexpected end" in said:
        return f"{said}: a quotation mark that opens a field is never closed"
    return said


def _header(
    header: list[str], values: list[str], path: Path, *, line: int
) -> tuple[list[str], list[str]]:
    """Return a name for every field, and the names of the columns proper."""
    if len(values) == len(header) + 1 and "" not in header and _counts(values[0]):
        header = ["", *header]  # R's write.table: row names have no column in the header
    if header and header[0] == "":
        return _checked(header, header[1:], path, line=line)
    return _checked(header, header, path, line=line)


def _counts(value: str) -> bool:
    """Return whether a first field numbers the rows."""
    return value in ("0", "1")


def _checked(
    header: list[str], names: list[str], path: Path, *, line: int
) -> tuple[list[str], list[str]]:
    if len(set(names)) < len(names) or "" in names:
        raise DataError(f"{path}, line {line}: column names are missing or repeated: {header}")
    if blank := [name for name in names if name != name.strip()]:
        raise DataError(
            f"{path}, line {line}: column names have white space at their ends: {blank}. It is a "
            "part of them, and of the fields below, in CSV: write the file without a space after "
            "each separator (pandas reads such a one with `skipinitialspace=True`)"
        )
    return header, names


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    """Yield lines in the encoding that the file's first bytes show; UTF-8 where they show none."""
    lines = bounded_lines(file, path)
    first = next(lines, (1, b""))[1]
    encoding = next((name for bom, name in _BOMS if first.startswith(bom)), "utf-8")
    if encoding == "utf-16":
        # A line feed is two bytes there, so the lines are cut after decoding.
        try:
            text = (first + file.read()).decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-16, which its first bytes announce") from error
        yield from StringIO(text, newline="")
        return
    for number, raw in chain([(1, first)], lines):
        try:
            yield raw.decode(encoding if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}). Save "
                "the file as UTF-8 (in a spreadsheet: `CSV UTF-8`; in pandas or R: "
                '`encoding="utf-8"`, `fileEncoding="UTF-8"`)'
            ) from error
