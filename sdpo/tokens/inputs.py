"""What a chat template gets beside the messages, row by row: variables, the model's below the row's
own, and which of them the template reads at all."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import meta

_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Tags of transformers, which print nothing and which plain Jinja does not know."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of one row: ``variables`` by name."""

    variables: Mapping[str, Any]

    def texts(self) -> Iterator[str]:
        """All texts within."""
        return texts_in(self.variables)


class RowInputs:
    """Reads what rows give their template, as :mod:`sdpo.data.template_inputs` wrote it; the
    variables in ``defaults`` are of every row that has none of their names."""

    def __init__(self, template: str, defaults: Mapping[str, Any]) -> None:
        self._template = template
        self._defaults = dict(defaults)
        self._known: dict[str, Inputs] = {}
        self._read: frozenset[str] | None = None
        self._all_read = False

    def of(self, text: str) -> Inputs:
        """The inputs that the ``text`` of a row stands for; "" for none of its own."""
        if text not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            given = json.loads(text) if text else {}
            self._known[text] = Inputs({**self._defaults, **given.get("variables", {})})
        return self._known[text]

    def unread(self, text: str, *, is_chat: bool) -> list[str]:
        """Names of variables that say something and that nothing reads: no template names them."""
        said = [name for name, value in self.of(text).variables.items() if _says(value)]
        return [name for name in said if not (is_chat and self._is_read(name))]

    def _is_read(self, name: str) -> bool:
        if self._read is None:
            try:
                plain = _GENERATION.sub("", self._template)
                tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
                self._read = frozenset(meta.find_undeclared_variables(tree))
            except (jinja2.TemplateError, RecursionError):
                self._read, self._all_read = frozenset(), True  # what it reads is not known
        return self._all_read or name in self._read


_MOST_KNOWN = 1 << 13
"""Inputs that are remembered; then all are forgotten, so that memory has a bound."""


def texts_in(value: object) -> Iterator[str]:
    """All texts within a value of JSON, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def _says(value: object) -> bool:
    """An empty text or list asks for nothing: exports have every name in every row."""
    return value is not None and value not in ("", [], {})
