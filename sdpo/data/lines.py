"""Lines of a file, as long and as empty as data is, and no more."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from sdpo.errors import DataError
from sdpo.system.json_values import Cell

LONGEST_LINE = 2**26
_MOST_BLANK_LINES = 100_000


def bounded_lines(file: Iterable[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines from 1, split at line feeds alone.

    Raises:
        DataError: a line that no memory should hold, or one of blank lines without an end.
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
    """An object of JSON as ``object_pairs_hook`` gets it; of a name that stands twice, readers take
    one or the other.

    Raises:
        ValueError: a name stands twice.
    """
    read = dict(pairs)
    if len(read) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r} stands twice in one object")
    return read
