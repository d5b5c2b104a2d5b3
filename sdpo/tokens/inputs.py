"""Read what a chat template gets beside the messages, row by row: tools and variables.

A row's own variables take precedence over the model's. It also tells which of them the template
reads, and whether it prints the tools.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta

_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""transformers has these tags: they print nothing, and plain Jinja does not know them."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of one row are ``variables`` by name, and ``tools`` as JSON schemas or None."""

    variables: Mapping[str, Any]
    tools: list[Mapping[str, Any]] | None = None

    def texts(self) -> Iterator[str]:
        """Yield all texts within."""
        yield from texts_in(self.variables)
        yield from texts_in(self.tools)

    def not_printed(self, printed: str) -> str:
        """Return a name or description of the tools that ``printed`` lacks; "" where it has all.

        That is of a tool or of its parameters, looked for as it is and as JSON spells it.
        """
        return next((text for text in _told(self.tools or []) if not _has(printed, text)), "")


class RowInputs:
    """Row inputs are what rows give their template, as :mod:`sdpo.data.template_inputs` wrote it.

    The variables in ``defaults`` count for every row that has none of their names. Rows with tools
    are printed by ``of_tools`` where there is such a template.
    """

    def __init__(self, template: str, defaults: Mapping[str, Any], *, of_tools: str = "") -> None:
        self._template = template
        self._of_tools = of_tools
        self._defaults = dict(defaults)
        self._known: dict[str, Inputs] = {}
        self._read: dict[str, frozenset[str] | None] = {}

    def of(self, text: str) -> Inputs:
        """Return the inputs that the ``text`` of a row spells; "" for none of its own."""
        if text not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            given = json.loads(text) if text else {}
            variables = {**self._defaults, **given.get("variables", {})}
            self._known[text] = Inputs(variables, given.get("tools"))
        return self._known[text]

    def unread(self, text: str, *, is_chat: bool) -> list[str]:
        """Return the names of variables that say something and that no template reads."""
        given = self.of(text)
        said = [name for name, value in given.variables.items() if _says(value)]
        if not (said and is_chat):
            return said
        template = self._of_tools if given.tools and self._of_tools else self._template
        if template not in self._read:
            self._read[template] = _read_by(template)
        read = self._read[template]
        return [] if read is None else [name for name in said if name not in read]


def _read_by(template: str) -> frozenset[str] | None:
    """Return the variables that a template names and does not set itself; None where unknown."""
    try:
        plain = _GENERATION.sub("", template)
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
        return frozenset(meta.find_undeclared_variables(tree))
    except (jinja2.TemplateError, RecursionError):
        return None


_MOST_KNOWN = 1 << 13
"""So many inputs are remembered; then all are forgotten, so that memory has a bound."""


def texts_in(value: object) -> Iterator[str]:
    """Yield all texts within a value of JSON, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def _told(tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what tools say of themselves: names and descriptions, those of parameters included."""
    for tool in tools:
        function = tool.get("function", tool)
        yield function["name"]
        yield from _described(function)
        yield from _parameters(function.get("parameters"))


def _parameters(schema: object) -> Iterator[str]:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    for name, parameter in properties.items() if isinstance(properties, Mapping) else ():
        yield name
        if isinstance(parameter, Mapping):
            yield from _described(parameter)
            yield from _parameters(parameter)


def _described(schema: Mapping[str, Any]) -> Iterator[str]:
    description = schema.get("description")
    if isinstance(description, str) and description.strip():
        yield description.strip()


def _has(printed: str, text: str) -> bool:
    return any(
        spelled in printed
        for spelled in (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1])
    )


def _says(value: object) -> bool:
    """Return whether a value says something: exports have every name in every row, empty or not."""
    return value is not None and value not in ("", [], {})
