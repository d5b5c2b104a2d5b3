"""Collect what a row gives its chat template beside the messages: tools and variables.

They are as TRL's and SmolLM3's data have them, in one JSON text that pairs and examples carry
along.
"""

import json
from collections.abc import Mapping
from typing import Any

from sdpo.config.variables import refused_variables
from sdpo.data.cells import MOST_DEEP, NotText, is_deep, is_nothing, parsed, without_nulls
from sdpo.data.prompts import Row, lookup
from sdpo.data.schema import Format

VARIABLES = "chat_template_kwargs"
SINGLE = ("enable_thinking", "custom_instructions")
TOOLS = "tools"
COLUMNS = (VARIABLES, *SINGLE, TOOLS)
"""Variables are in these columns (all in one, or a well-known one by its name), and tools."""

_SWITCH = {"true": True, "false": False}


class NotVariables(NotText):
    """The row has variables for the template that cannot be given to it; the message says why."""

    reason = "template_variables"


def template_inputs(row: Row, variables: Mapping[str, object], format_: Format) -> str:
    """Return what the template gets for ``row``: tools, and its variables over its source's; or "".

    Raises:
        NotVariables: a variable cannot be set, or is given twice and differs.
        NotText: tools are no list of JSON schemas, or in a source without a template.
    """
    own = variables_of(row)
    merged = {**variables, **own} if own else variables
    tools = tools_of(row)
    if tools and format_ == "text":
        raise NotText(
            "the row has `tools`, which a chat template prints, and its source is plain text: set "
            "the source's `format: chat`, or empty the column"
        )
    inputs: dict[str, object] = {"tools": tools} if tools else {}
    return as_text(inputs | ({"variables": merged} if merged else {}))


def tools_of(row: Row) -> list[dict[str, Any]]:
    """Return the row's tools as JSON schemas: a list of objects, or the JSON text of either.

    Nulls in a list are left out, as Parquet has every name in every tool; in JSON text they
    stay.

    Raises:
        NotText: it is something else.
    """
    value = row.get(TOOLS)
    if is_nothing(value):
        value = lookup(row, "input.tools")
    if is_nothing(value):
        return []
    listed = parsed(value) if isinstance(value, str) else without_nulls(value)
    read = [parsed(t) if isinstance(t, str) else t for t in listed] if _is_list(listed) else []
    if not read or not all(isinstance(tool, dict) and _name_of(tool) for tool in read):
        raise NotText(
            "`tools` is no list of JSON schemas, each an object with the `name` of a function: "
            '[{"type": "function", "function": {"name": ..., "parameters": ...}}]'
        )
    if is_deep(read):
        raise NotText(f"`tools` has values within values, {MOST_DEEP} deep and more")
    try:
        json.dumps(read, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise NotText("`tools` has a value that is none of JSON") from error
    return read


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _name_of(tool: dict[str, Any]) -> object:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def as_text(inputs: Mapping[str, object]) -> str:
    """Return ``inputs`` as JSON, in the order given; "" for nothing."""
    return json.dumps(inputs, ensure_ascii=False, separators=(",", ":")) if inputs else ""


def variables_of(row: Row) -> dict[str, Any]:
    """Return the row's own variables by name, without nulls, as Parquet has all names.

    Raises:
        NotVariables: as :func:`template_inputs` says.
    """
    if not any(name in row for name in (VARIABLES, *SINGLE)):
        return {}
    found = _mapping(row.get(VARIABLES))
    for name in SINGLE:
        value = _single(name, row.get(name))
        if value is None:
            continue
        if found.setdefault(name, value) != value:
            raise NotVariables(f"`{name}` and `{VARIABLES}.{name}` are not the same: leave one out")
    if why := refused_variables(found):
        raise NotVariables(f"`{VARIABLES}`: {why}")
    if is_deep(found):
        raise NotVariables(f"`{VARIABLES}` has values within values, {MOST_DEEP} deep and more")
    return dict(sorted(found.items()))


def _mapping(value: object) -> dict[str, Any]:
    if is_nothing(value):
        return {}
    read = parsed(value) if isinstance(value, str) else value
    if not isinstance(read, dict) or not all(isinstance(name, str) for name in read):
        raise NotVariables(f"`{VARIABLES}` is no JSON object of variables by name")
    return {name: item for name, item in read.items() if item is not None}


def _single(name: str, value: object) -> object:
    if value is None or value == "":
        return None
    if name == "enable_thinking":
        switch = _SWITCH.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(switch, bool):
            raise NotVariables(f"`{name}` is {value!r}, and it is true or false")
        return switch
    if not isinstance(value, str):
        raise NotVariables(f"`{name}` is {value!r}, and it is a text")
    return value
