"""Read cells that hold messages or lists as text, as CSV files and some exports do."""

import ast
import json
import re
from collections.abc import ValuesView
from typing import Any

_LOOKS_LIKE_MESSAGES = re.compile(r"\s*(?:\[\s*)?\{\s*['\"](?:role|from|content|value)['\"]\s*:")
_MOST_CHARS = 1 << 20
"""A cell in Python's notation is read up to so many characters: reading takes much memory."""
MOST_DEEP = 64
"""Values within values are read up to this depth; what people write has a few."""

_NOTHING = {"", "[]", "{}", "null", "none", "nan"}


class NotText(ValueError):
    """The row holds something besides text; the message says what."""

    reason = "not_text"


def is_nothing(value: object) -> bool:
    """Return whether a cell holds nothing; an empty list as text is nothing too."""
    return not value or (isinstance(value, str) and value.strip().lower() in _NOTHING)


def cell(value: Any, name: str) -> Any:
    """Return ``value`` itself, or the messages that it holds as text (JSON or Python's notation).

    Raises:
        NotText: it looks like messages and cannot be read as such.
    """
    if not isinstance(value, str) or not _LOOKS_LIKE_MESSAGES.match(value):
        return value
    if not value.rstrip().endswith(("]", "}")):
        return value  # text that begins with an example of a message
    read = parsed(value)
    messages = read if isinstance(read, list) else [read]
    if messages and all(isinstance(m, dict) and {"role", "from"} & m.keys() for m in messages):
        return read
    if read is None:
        raise NotText(
            f"{name} holds a list of messages as text, which is not JSON: write it as JSON, or "
            "store the list itself (JSONL, Parquet)"
        )
    return value


def is_json_text(value: object) -> bool:
    """Return whether a cell is the JSON text of an object, or of a list of texts or objects."""
    if not isinstance(value, str) or value.strip()[:1] not in ("{", "["):
        return False
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return False
    inner = read if isinstance(read, list) else [read]
    return bool(inner) and all(isinstance(each, str | dict) for each in inner)


def listed(value: Any) -> Any:
    """Return ``value`` itself, or the list that it holds as text."""
    if not isinstance(value, str):
        return value
    read = None if is_nothing(value) else parsed(value)
    return read if isinstance(read, list) else (value if not is_nothing(value) else [])


def without_nulls(value: Any) -> Any:
    """Return ``value`` without the nulls within, as Parquet has every name in every object.

    Raises:
        NotText: values are nested more deeply than can be read.
    """
    if is_deep(value):
        raise NotText(f"the row has values within values, {MOST_DEEP} deep and more")
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def is_deep(value: object) -> bool:
    """Return whether values are nested more deeply than templates' readers can follow."""
    level = [value]
    for _ in range(MOST_DEEP):
        inner = [v.values() if isinstance(v, dict) else v for v in level]
        level = [each for v in inner if isinstance(v, list | tuple | ValuesView) for each in v]
        if not level:
            return False
    return True


def parsed(text: str) -> Any:
    """Return the value that a text spells in JSON or Python's notation; None for no value."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > _MOST_CHARS:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
