"""Read the lines of a file within bounds: no longer, and not more of them blank, than data has."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from sdpo.errors import DataError
from sdpo.system.json_values import Cell

LONGEST_LINE = 2**26
_MOST_BLANK_LINES = 100_000


def bounded_lines(file: Iterable[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers from 1, split at line feeds alone.

    Raises:
        DataError: a line is longer than memory should hold, or blank lines do not end.
    """
    blank = 0
    for number, line in enumerate(file, start=1):
        if len(line) > LONGEST_LINE:
            raise DataError(f"{path}, line {number}: longer than {LONGEST_LINE:,} bytes")
        blank = blank + 1 if line.isspace() else 0
        if blank > _MOST_BLANK_LINES:
            raise DataError(f"{path}, line {number}: {blank:,} blank lines in a row: no data")
        yield number, line


def names_once(pairs: list[tuple[str, Cell]]) -> dict[str, Cell]:
    """Make an object of JSON, as its ``object_pairs_hook``, and refuse a name that is there twice.

    Raises:
        ValueError: a name is there twice, of which readers take one or the other.
    """
    read = dict(pairs)
    if len(read) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return read


def in_words(error: json.JSONDecodeError) -> str:
    """Return what is wrong without where, which the reader counts in lines of the file."""
    return error.msg.rstrip(": ").removesuffix(" at")
