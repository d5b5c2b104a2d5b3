"""Read a few values of a run.yaml that this project wrote, without the rest.

That takes a tenth of the time: thousands of runs are listed by these values."""

import re
from collections.abc import Iterable, Mapping
from functools import cache

import yaml
from pydantic import JsonValue

from sdpo.system.bounded_yaml import QuickLoader


def read_head(text: str, keys: Iterable[str]) -> dict[str, JsonValue]:
    """Return the values of these ``keys``; a key of a group is given as ``group.key``.

    Keys that are not there are left out. ``text`` has the form of
    :meth:`sdpo.store.run_folder.RunFolder.write_run`.

    Raises:
        ValueError: what is there is not YAML.
    """
    found: dict[str, JsonValue] = {}
    for key in keys:
        part, indent = text, ""
        for name in key.split("."):
            part, indent = _section(part, name, indent), indent + "  "
        if part:
            try:
                found[key] = QuickLoader(part).get_single_data()
            except (yaml.YAMLError, RecursionError) as error:
                raise ValueError(str(error)) from error
    return found


def picked(content: Mapping[str, JsonValue], keys: Iterable[str]) -> dict[str, JsonValue]:
    """Return the same values of a run.yaml that was read whole."""
    found: dict[str, JsonValue] = {}
    for key in keys:
        value: JsonValue = dict(content)
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found[key] = value
    return found


def _section(text: str, name: str, indent: str) -> str:
    """Return the value of a key at ``indent``, with all lines below that belong to it.

    They are indented further, are the items of its list, or begin with another of Unicode's line
    ends, within a text. The result is empty where there is no such key."""
    found = _pattern(name, indent).search(text)
    return found[1].lstrip(" ") if found else ""


@cache
def _pattern(name: str, indent: str) -> "re.Pattern[str]":
    return re.compile(
        rf"^{indent}{re.escape(name)}:(.*(?:\n(?:{indent}(?: |- ).*|[\x85\u2028\u2029].*|-?$))*)",
        re.MULTILINE,
    )
