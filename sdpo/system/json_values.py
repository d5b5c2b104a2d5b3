"""Define the types of JSON, for what is written, and of a row's cells, for what was read.

JSON that was read is a model of its own; see :mod:`sdpo.store.records`.
"""

from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import TypeAlias, Union

Json: TypeAlias = Union[bool, int, float, str, "Sequence[Json]", "Mapping[str, Json]", None]
JsonObject: TypeAlias = Mapping[str, Json]

Cell: TypeAlias = Union[
    bool, int, float, str, bytes, date, time, timedelta, Decimal, "Sequence[Cell]", "Cells", None
]
"""A row of somebody's file may have this in a column, whatever the file's format."""
Cells: TypeAlias = Mapping[str, Cell]


def number_of(content: JsonObject, name: str) -> float:
    """Return the number that ``content`` has under ``name``.

    Raises:
        KeyError: it has none.
        TypeError: it has something else there.
    """
    value = content[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, where a number was due")
    return value
