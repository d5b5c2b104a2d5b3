"""The types of JSON, for what is written: a value, and a mapping of names to values.

What was read is a model of its own; see :mod:`sdpo.store.records`.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, Union

Json: TypeAlias = Union[bool, int, float, str, "Sequence[Json]", "Mapping[str, Json]", None]
JsonObject: TypeAlias = Mapping[str, Json]


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
