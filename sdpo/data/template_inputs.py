"""What a row gives its chat template beside the messages: variables, as TRL's and SmolLM3's data
have them, in one JSON text that pairs and examples carry along."""

import json
from collections.abc import Mapping
from typing import Any

from sdpo.config.variables import refused_variables
from sdpo.data.cells import is_nothing, parsed
from sdpo.data.messages import NotText
from sdpo.data.prompts import Row

VARIABLES = "chat_template_kwargs"
SINGLE = ("enable_thinking", "custom_instructions")
COLUMNS = (VARIABLES, *SINGLE)
"""Columns of variables: all of a row in one, or a well-known one by its name."""

_SWITCH = {"true": True, "false": False}


class NotVariables(NotText):
    """The row has variables for the template that cannot be given to it; the message says why."""

    reason = "template_variables"


def template_inputs(row: Row, variables: Mapping[str, object]) -> str:
    """What the template gets for ``row``: its own variables over those of its source; "" for none.

    Raises:
        NotVariables: a variable that cannot be set, or one that is given twice and differs.
    """
    own = variables_of(row)
    merged = {**variables, **own} if own else variables
    return as_text({"variables": merged} if merged else {})


def as_text(inputs: Mapping[str, object]) -> str:
    """JSON, in the order given; "" for nothing."""
    return json.dumps(inputs, ensure_ascii=False, separators=(",", ":")) if inputs else ""


def variables_of(row: Row) -> dict[str, Any]:
    """The row's own variables. One that is null is not given: Parquet has every name in every row.

    Raises:
        NotVariables: see :func:`template_inputs`.
    """
    if not any(name in row for name in COLUMNS):
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
