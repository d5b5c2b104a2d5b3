"""Find the texts in what a message has besides its own: tool calls, reasoning.

They are contents as the message's own text is; so are the names of a call's arguments. What a
template may look at or leave out on purpose is no content: ids and types of calls, and whose answer
a tool's turn is.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_REASONING = (("reasoning_content",), ("thinking",))
_MOST_ESCAPES = 3


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf is a text within, without the white space at its ends; ``path`` leads to it."""

    path: tuple[str, ...]
    core: str

    @property
    def is_reasoning(self) -> bool:
        """Return whether it is reasoning."""
        return self.path in _REASONING

    @property
    def may_repeat(self) -> bool:
        """Return whether a template may repeat it, as it does a function's name with its answer."""
        return self.path[-2:] == ("function", "name")


@dataclass(frozen=True)
class Rest:
    """A rest is what a message has besides role and text, by the names that its template gets."""

    fields: Mapping[str, Any]

    @cached_property
    def leaves(self) -> tuple[Leaf, ...]:
        """Return all texts that say something, reasoning first."""
        found: list[Leaf] = []

        def note(leaf: Leaf) -> str:
            found.append(leaf)
            return leaf.core

        _changed(self.fields, (), note)
        return tuple(sorted(found, key=lambda leaf: not leaf.is_reasoning))

    @cached_property
    def thoughts(self) -> int:
        """Return how many of the leaves are reasoning."""
        return sum(leaf.is_reasoning for leaf in self.leaves)

    @cached_property
    def key(self) -> str:
        """Return all of it but the cores, by which equal shapes are known."""
        return json.dumps(_changed(self.fields, (), lambda leaf: f"\0{len(leaf.path)}"))

    @cached_property
    def told(self) -> tuple[str, ...]:
        """Return the texts that are no contents."""
        return tuple(_told(self.fields))

    def filled(self, cores: Sequence[str]) -> dict[str, Any]:
        """Return the fields with other cores, in the order of the leaves."""
        given = dict(zip(self.leaves, cores, strict=True))
        filled: dict[str, Any] = _changed(self.fields, (), given.__getitem__)
        return filled


def template_message(message: Mapping[str, str], template: str) -> dict[str, Any]:
    """Return a message of ``pairs.parquet`` as ``template`` gets it.

    Templates have several names for reasoning: the message has the one that this template reads.
    """
    plain = {"role": message["role"], "content": message["content"]}
    rest = message.get("rest")
    if not rest:
        return plain
    fields = json.loads(rest)
    thought, other = (name for [name] in _REASONING)
    name = other if thought not in template and other in template else thought
    return plain | {name if key == thought else key: value for key, value in fields.items()}


def rest_of(message: Mapping[str, Any]) -> Rest | None:
    """Return what a template's message has besides its role and content; None for nothing."""
    if len(message) == 2:
        return None
    return Rest({k: v for k, v in message.items() if k not in ("role", "content")})


def escaped(text: str, times: int) -> str:
    """Return ``text`` as JSON spells it, ``times`` over."""
    for _ in range(times):
        text = json.dumps(text, ensure_ascii=False)[1:-1]
    return text


def escapes_of(text: str, printed: str) -> int | None:
    """Return how often JSON escaped ``text`` to ``printed``; None where it is another text."""
    return next((n for n in range(_MOST_ESCAPES) if escaped(text, n) == printed), None)


def _changed(value: Any, path: tuple[str, ...], change: Callable[[Leaf], str]) -> Any:
    if isinstance(value, str):
        core = value.strip()
        if not core or _is_told(path):
            return value
        lead, tail = value.split(core, 1)
        return f"{lead}{change(Leaf(path, core))}{tail}"
    if isinstance(value, Mapping):
        named = path[2:4] == ("function", "arguments")
        return {
            (_changed(name, (*path, name, "\0"), change) if named else name): _changed(
                item, (*path, name), change
            )
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_changed(item, (*path, str(i)), change) for i, item in enumerate(value)]
    return value


def _is_told(path: tuple[str, ...]) -> bool:
    return (len(path) == 1 and path not in _REASONING) or (
        len(path) == 3 and path[2] in ("id", "type")
    )


def _told(fields: Mapping[str, Any]) -> Iterator[str]:
    yield from (v for k, v in fields.items() if isinstance(v, str) and _is_told((k,)))
    for call in fields.get("tool_calls", ()):
        yield from (v for k, v in call.items() if isinstance(v, str) and k in ("id", "type"))
