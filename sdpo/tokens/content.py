"""Where the texts of messages stand in what a chat template printed, and which it did not print.

A template prints a conversation as its own literals with the messages' texts between them. The
literals follow from the roles and from what the template looks for in a text (think tags, white
space at its ends, emptiness), so they are found once for each such shape, by printing it with marks
that no template would print otherwise. A conversation is then what was given exactly where its
literals and texts, joined, are the printed text: one comparison. Where they are not, the
conversation itself is printed once more with marks around its texts.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import jinja2

Print = Callable[[Sequence[Mapping[str, str]], bool, str], str]
"""What the template prints of a conversation; with the opening of an answer if so asked, and with
what a row gives it beside the messages ("" for nothing)."""

_NONCE = "Qz7k"
_MOST_SHAPES = 1 << 13
"""Shapes that are remembered; then all are forgotten, so that memory has a bound."""

_REASONING = r"[<\[]/?\|?(?i:think|thinking|thought|reason|reasoning)\|?[>\]]"
_TAG = re.compile(rf"{_REASONING}|</?[A-Za-z_][\w-]*>|\[/?[A-Z_]+\]|(?<=['\"])/[a-z_]+(?=['\"])")
_CLOSES_REASONING = re.compile(r"[<\[]/\|?(?i:think|thinking|thought|reason|reasoning)\|?[>\]]")


def is_reasoning_tag(token: str) -> bool:
    """Whether a token is one around reasoning: data writes it as a part of an answer's text."""
    return bool(re.fullmatch(_REASONING, token))


def tags_of(template: str, *, without: Collection[str]) -> "re.Pattern[str] | None":
    """An expression for the tags that a template names, several in a row as one.

    It may look for them in a text and print what stands between them elsewhere or not at all.
    ``without`` are names that no template takes from a text.
    """
    names = {*_TAG.findall(template)} - set(without)
    if not names:
        return None
    listed = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"((?:{listed})(?:\s*(?:{listed}))*)")


@dataclass(frozen=True, slots=True)
class Shaped:
    """A message's text as ``marks[0] cores[0] marks[1] ... marks[-1]``: the marks are the tags and
    the white space at the ends, the cores are what has to be printed as it is."""

    role: str
    marks: tuple[str, ...]
    cores: tuple[str, ...]

    def filled(self, cores: Sequence[str]) -> dict[str, str]:
        """The message with other cores."""
        pieces = [self.marks[0]]
        for core, mark in zip(cores, self.marks[1:], strict=True):
            pieces += (core, mark)
        return {"role": self.role, "content": "".join(pieces)}

    @property
    def reasoning(self) -> int:
        """How many cores stand before the last closing tag of reasoning."""
        for index in range(len(self.marks) - 1, -1, -1):
            if _CLOSES_REASONING.search(self.marks[index]):
                return index
        return 0


def shaped(message: Mapping[str, str], tags: "re.Pattern[str] | None") -> Shaped:
    """A message in its parts."""
    content = message["content"]
    core = content.strip()
    if not core:
        return Shaped(message["role"], (content,), ())
    if tags is None or not tags.search(core):
        lead, tail = ("", "") if len(core) == len(content) else content.split(core, 1)
        return Shaped(message["role"], (lead, tail), (core,))
    parts = tags.split(content)
    # Text and tags in turn; a blank text belongs to the tags around it.
    marks, cores = [""], list[str]()
    for index, part in enumerate(parts):
        text = part.strip()
        if index % 2 or not text:
            marks[-1] += part
        else:
            lead, tail = part.split(text, 1)
            marks[-1] += lead
            cores.append(text)
            marks.append(tail)
    return Shaped(message["role"], tuple(marks), tuple(cores))


@dataclass(frozen=True)
class Printed:
    """What a template made of a conversation: ``literals[0] core literals[1] core ...``.

    ``order`` are the cores, counted over all messages, as they were printed; ``lost`` those that
    were not, or not as they are; ``repeated`` those that were printed more than once.
    """

    literals: tuple[str, ...]
    order: tuple[int, ...]
    lost: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    controls: dict[str, int] = field(default_factory=dict, compare=False)
    """Control tokens in the literals, by how the last of them ends; for whoever counts them."""

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Characters of the literals up to each."""
        total, ends = 0, []
        for literal in self.literals:
            total += len(literal)
            ends.append(total)
        return tuple(ends)

    @cached_property
    def in_order(self) -> bool:
        """Whether the cores were printed in the order of the messages."""
        return list(self.order) == sorted(self.order)

    def text(self, cores: Sequence[str]) -> str:
        """All of it with these cores."""
        pieces = [self.literals[0]]
        for index, literal in zip(self.order, self.literals[1:], strict=True):
            pieces += (cores[index], literal)
        return "".join(pieces)


class Contents:
    """Finds the texts of messages in what one template prints."""

    def __init__(self, print_: Print, tags: "re.Pattern[str] | None") -> None:
        self._print = print_
        self._tags = tags
        self._known: dict[tuple[object, ...], Printed | None] = {}

    def shaped(self, messages: Sequence[Mapping[str, str]]) -> list[Shaped]:
        """The messages in their parts."""
        return [shaped(message, self._tags) for message in messages]

    def locate(
        self, messages: Sequence[Shaped], text: str, *, opening: bool, inputs: str = ""
    ) -> Printed:
        """How ``text``, printed with or without an opening and with ``inputs``, is made of the
        messages' texts."""
        cores = [core for message in messages for core in message.cores]
        shape = self._shape(messages, opening, inputs)
        if shape is not None and shape.text(cores) == text:
            return shape
        return self._around(messages, cores, text, opening, inputs) or _in_turn(cores, text)

    def _shape(self, messages: Sequence[Shaped], opening: bool, inputs: str) -> Printed | None:
        """The literals of a shape; None where the template refuses the marks."""
        key = (opening, inputs, *[(message.role, message.marks) for message in messages])
        if key not in self._known:
            if len(self._known) >= _MOST_SHAPES:
                self._known.clear()
            count = sum(len(message.cores) for message in messages)
            names = [f"{_NONCE}{index}{_NONCE}" for index in range(count)]
            text = self._try(_filled(messages, names), opening, inputs)
            self._known[key] = None if text is None else _of_names(text, messages, count)
        return self._known[key]

    def _around(
        self,
        messages: Sequence[Shaped],
        cores: Sequence[str],
        text: str,
        opening: bool,
        inputs: str,
    ) -> Printed | None:
        """By marks around the texts themselves; None where the template prints them otherwise."""
        framed = [f"{_NONCE}{i}a{core}{_NONCE}{i}e" for i, core in enumerate(cores)]
        printed = self._try(_filled(messages, framed), opening, inputs)
        if printed is None or re.sub(rf"{_NONCE}\d+[ae]", "", printed) != text:
            return None
        pieces = re.split(rf"{_NONCE}(\d+)a(.*?){_NONCE}\1e", printed, flags=re.DOTALL)
        literals, numbers = pieces[::3], [int(number) for number in pieces[1::3]]
        if any(_NONCE in literal for literal in literals):
            return None
        whole = all(
            cores[number] == found
            for number, found in zip(numbers, pieces[2::3], strict=True)
            if number < len(cores)
        )
        if not whole or max(numbers, default=0) >= len(cores):
            return None
        return _checked(literals, numbers, messages, len(cores))

    def _try(self, messages: Sequence[Mapping[str, str]], opening: bool, inputs: str) -> str | None:
        try:
            return self._print(messages, opening, inputs)
        except jinja2.TemplateError:
            return None


def _filled(messages: Sequence[Shaped], cores: Sequence[str]) -> list[dict[str, str]]:
    filled, at = [], 0
    for message in messages:
        count = len(message.cores)
        filled.append(message.filled(cores[at : at + count]))
        at += count
    return filled


def _of_names(text: str, messages: Sequence[Shaped], count: int) -> Printed | None:
    pieces = re.split(rf"{_NONCE}(\d+){_NONCE}", text)
    literals, numbers = pieces[::2], [int(number) for number in pieces[1::2]]
    if any(_NONCE in literal for literal in literals):
        return None  # the template cuts texts, or prints parts of them
    return _checked(literals, numbers, messages, count)


def _checked(
    literals: Sequence[str], order: Sequence[int], messages: Sequence[Shaped], count: int
) -> Printed:
    """With what was lost or repeated. A tag counts as lost with a core beside it."""
    lost = {index for index in range(count) if index not in order}
    at = 0
    for message in messages:
        tags = [tag for mark in message.marks for tag in mark.split() if not tag.startswith("/")]
        numbers = range(at, at + len(message.cores))
        at += len(message.cores)
        if tags and numbers and not lost.intersection(numbers):
            printed = _beside(literals, order, numbers)
            if any(printed.count(tag) < tags.count(tag) for tag in tags):
                lost.add(numbers[0])
    repeated = {index for index in order if order.count(index) > 1}
    return Printed(tuple(literals), tuple(order), tuple(sorted(lost)), tuple(sorted(repeated)))


def _beside(literals: Sequence[str], order: Sequence[int], numbers: range) -> str:
    """The literals beside the cores of one message."""
    places = [place for place, number in enumerate(order) if number in numbers]
    return "\n".join(literals[min(places) : max(places) + 2])


def _in_turn(cores: Sequence[str], text: str) -> Printed:
    """The cores one after the other as they are found in ``text``."""
    literals, order, lost, at = list[str](), list[int](), list[int](), 0
    for index, core in enumerate(cores):
        found = text.find(core, at)
        if found < 0:
            lost.append(index)
            continue
        literals.append(text[at:found])
        order.append(index)
        at = found + len(core)
    literals.append(text[at:])
    return Printed(tuple(literals), tuple(order), tuple(lost))
