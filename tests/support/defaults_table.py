"""The defaults of a version beside those of the code: what to do where they differ."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from settings_values import group_within

from sdpo.config.annotations import Node, counts

Defaults = Mapping[str, Any]


def bearing_defaults(
    group: type[BaseModel], node: Node | None = None, where: str = ""
) -> Iterator[tuple[str, Any]]:
    """Defaults of the settings that bear a node's identity, or the run's, by dotted path."""
    for name, field in group.model_fields.items():
        if not counts(field, node):
            continue
        path, inner = f"{where}{name}", group_within(field.annotation)
        if inner is None:
            yield path, field.default
        elif not isinstance(field.default, list):
            yield from bearing_defaults(inner, node, f"{path}.")
        else:
            yield path, field.default
            yield from bearing_defaults(inner, node, f"{path}.0.")


def faults(
    table: Mapping[str, Defaults], version: int, defaults: Defaults, *, constant: str
) -> list[str]:
    """What must be done before ``defaults`` may stand in the code, one line each."""
    following = (
        f"raise {constant} to {version + 1} in sdpo/identity/payloads.py and add its whole table"
    )
    if str(version) not in table:
        return [f"there is no table of {constant} {version}: add one with all defaults as they are"]
    known, lines = table[str(version)], []
    for path in sorted(known.keys() | defaults.keys()):
        if path not in defaults:
            lines.append(
                f"{path} is gone: if results without it are those at its old default, take it out "
                f"of the table of {constant} {version}; else {following}"
            )
        elif path not in known:
            lines.append(
                f"{path} is new: if its default {defaults[path]!r} leaves every result as it was, "
                f"add it to the table of {constant} {version}; else {following}"
            )
        elif known[path] != defaults[path]:
            lines.append(
                f"{path} was {known[path]!r} and is {defaults[path]!r}: identities leave out what "
                f"stands at its default, so an old result would serve as the new one; {following}"
            )
    return lines
