"""Find the texts of messages in what a chat template printed, and those it did not print.

A template prints a conversation as its own literals with the messages' texts between them. The
literals follow from the roles and from what the template looks for in a text (think tags, white
space at its ends, emptiness), so they are found once for each such shape, by printing it with marks
that no template would print otherwise. A conversation was printed as given exactly where its
literals and texts, joined, are the printed text: one comparison. Where they are not, the
conversation itself is printed once more with marks around its texts.

Templates print tool calls, and some the words of a tool, as JSON: there a text is as JSON spells
it, and a quotation mark within the mark tells how often it was escaped.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jinja2

from sdpo.tokens.message_rest import Leaf, Rest, escaped, escapes_of, rest_of

Print = Callable[[Sequence[Mapping[str, Any]], bool, str], str]
"""It returns what the template prints of a conversation.

The opening of an answer is added if so asked; the text is what a row gives the template beside the
messages ("" for nothing).
"""

_NONCE = "Qz7k"
_MOST_SHAPES = 1 << 13
_MOST_CHARACTERS = 1 << 24
"""Shapes up to these numbers are remembered; then all are forgotten, so that memory has a bound."""

_MOST_LOST = 100
"""So many texts are looked for in vain in what was printed of one conversation, and no more."""

_REASONING = r"[<\[]/?\|?(?i:think|thinking|thought|reason|reasoning)\|?[>\]]"
_TAG = re.compile(rf"{_REASONING}|</?[A-Za-z_][\w-]*>|\[/?[A-Z_]+\]|(?<=['\"])/[a-z_]+(?=['\"])")
_CLOSES_REASONING = re.compile(r"[<\[]/\|?(?i:think|thinking|thought|reason|reasoning)\|?[>\]]")


def is_reasoning_tag(token: str) -> bool:
    """Return whether a token is a tag of reasoning, which data writes within an answer's text."""
    return bool(re.fullmatch(_REASONING, token))


def tags_of(template: str, *, without: Collection[str]) -> "re.Pattern[str] | None":
    """Return an expression for the tags that a template names, several in a row as one.

    The template may look for them in a text, and print what is between them elsewhere or not at
    all. ``without`` are names that no template takes from a text. None: it names no tags.
    """
    names = {*_TAG.findall(template)} - set(without)
    if not names:
        return None
    listed = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"((?:{listed})(?:\s*(?:{listed}))*)")


@dataclass(frozen=True, slots=True)
class Shaped:
    """A shaped message has its text as ``marks[0] texts[0] marks[1] ... marks[-1]``.

    The marks are the tags and the white space at the ends, the texts are what has to be printed as
    it is. They and the texts of its ``rest`` are its cores, in the order reasoning, the text, the
    others.
    """

    role: str
    marks: tuple[str, ...]
    texts: tuple[str, ...]
    rest: Rest | None = None

    @property
    def cores(self) -> tuple[str, ...]:
        """Return all that has to be printed as it is."""
        if self.rest is None:
            return self.texts
        leaves = [leaf.core for leaf in self.rest.leaves]
        return (*leaves[: self.thoughts], *self.texts, *leaves[self.thoughts :])

    @property
    def thoughts(self) -> int:
        """Return how many cores come before those of the text."""
        return self.rest.thoughts if self.rest else 0

    @property
    def of_text(self) -> slice:
        """Return which cores are the text's."""
        return slice(self.thoughts, self.thoughts + len(self.texts))

    def leaf(self, core: int) -> Leaf | None:
        """Return where a core is in the rest; None for one of the text."""
        if self.rest is None or core in range(self.of_text.start, self.of_text.stop):
            return None
        return self.rest.leaves[core if core < self.thoughts else core - len(self.texts)]

    def is_escaped(self, core: int) -> bool:
        """Return whether a template may print a core as JSON spells it."""
        return self.role == "tool" or self.leaf(core) is not None

    @property
    def key(self) -> tuple[object, ...]:
        """Return all but the cores, by which equal shapes are known."""
        own = (self.role, self.marks)
        return own if self.rest is None else (*own, self.rest.key)

    def filled(self, cores: Sequence[str]) -> dict[str, Any]:
        """Return the message with other cores."""
        pieces = [self.marks[0]]
        for core, mark in zip(cores[self.of_text], self.marks[1:], strict=True):
            pieces += (core, mark)
        message = {"role": self.role, "content": "".join(pieces)}
        if self.rest is None:
            return message
        of_rest = [*cores[: self.of_text.start], *cores[self.of_text.stop :]]
        return message | self.rest.filled(of_rest)

    @property
    def reasoning(self) -> int:
        """Return how many cores of the text come before the last closing tag of reasoning."""
        for index in range(len(self.marks) - 1, -1, -1):
            if _CLOSES_REASONING.search(self.marks[index]):
                return index
        return 0


def shaped(message: Mapping[str, Any], tags: "re.Pattern[str] | None") -> Shaped:
    """Split a message into its parts."""
    role, content, rest = message["role"], message["content"], rest_of(message)
    core = content.strip()
    if not core:
        return Shaped(role, (content,), (), rest)
    whole = ("", "") if len(core) == len(content) else tuple(content.split(core, 1))
    if tags is None or not tags.search(core):
        return Shaped(role, whole, (core,), rest)
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
    if not cores:  # tags alone are what the message says
        return Shaped(role, whole, (core,), rest)
    return Shaped(role, tuple(marks), tuple(cores), rest)


@dataclass(frozen=True)
class Printed:
    """A printed conversation is ``literals[0] core literals[1] core ...`` as the template made it.

    ``order`` are the cores, counted over all messages, as they were printed; ``escapes`` is how
    often JSON escaped each; ``lost`` are those that were not printed, or not as they are;
    ``repeated`` those that were printed more than once.
    """

    literals: tuple[str, ...]
    order: tuple[int, ...]
    escapes: tuple[int, ...]
    lost: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    controls: dict[str, int] = field(default_factory=dict, compare=False)
    """Numbers of control tokens in the literals, by the closing of the last, are kept here."""

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Return how many characters the literals have up to the end of each."""
        total, ends = 0, []
        for literal in self.literals:
            total += len(literal)
            ends.append(total)
        return tuple(ends)

    @cached_property
    def in_order(self) -> bool:
        """Return whether the cores were printed in the order of the messages."""
        return list(self.order) == sorted(self.order)

    def spelled(self, cores: Sequence[str]) -> list[str]:
        """Return these cores as they are printed between the literals."""
        pairs = zip(self.order, self.escapes, strict=True)
        return [escaped(cores[index], times) if times else cores[index] for index, times in pairs]

    def text(self, cores: Sequence[str]) -> str:
        """Return the whole text with these cores."""
        pieces = [self.literals[0]]
        for core, literal in zip(self.spelled(cores), self.literals[1:], strict=True):
            pieces += (core, literal)
        return "".join(pieces)


class Contents:
    """This class finds the texts of messages in what one template prints."""

    def __init__(self, print_: Print, tags: "re.Pattern[str] | None") -> None:
        self._print = print_
        self._tags = tags
        self._known: dict[tuple[object, ...], Printed | None] = {}
        self._characters = 0

    def shaped(self, messages: Sequence[Mapping[str, Any]]) -> list[Shaped]:
        """Split messages into their parts."""
        return [shaped(message, self._tags) for message in messages]

    def locate(
        self, messages: Sequence[Shaped], text: str, *, opening: bool, inputs: str = ""
    ) -> Printed:
        """Return how the printed ``text`` is made of the messages' texts.

        It was printed with or without an ``opening``, and with ``inputs``.
        """
        cores = [core for message in messages for core in message.cores]
        shape = self._shape(messages, opening, inputs)
        if shape is not None and shape.text(cores) == text:
            return shape
        return self._around(messages, cores, text, opening, inputs) or _in_turn(messages, text)

    def _shape(self, messages: Sequence[Shaped], opening: bool, inputs: str) -> Printed | None:
        """Return the literals of a shape; None where the template refuses the marks."""
        key = (opening, inputs, *[message.key for message in messages])
        if key not in self._known:
            if len(self._known) >= _MOST_SHAPES or self._characters > _MOST_CHARACTERS:
                self._known.clear()
                self._characters = 0
            quotes = ['"' if may else "" for may in _escaped(messages)]
            names = [f"{_NONCE}{index}{quote}{_NONCE}" for index, quote in enumerate(quotes)]
            text = self._try(_filled(messages, names), opening, inputs)
            self._characters += len(text or "") + sum(len(m.rest.key) for m in messages if m.rest)
            self._known[key] = None if text is None else _of_names(text, messages)
        return self._known[key]

    def _around(
        self,
        messages: Sequence[Shaped],
        cores: Sequence[str],
        text: str,
        opening: bool,
        inputs: str,
    ) -> Printed | None:
        """Locate texts by marks around them; None where the template prints them otherwise then."""
        framed = [f"{_NONCE}{i}a{core}{_NONCE}{i}e" for i, core in enumerate(cores)]
        printed = self._try(_filled(messages, framed), opening, inputs)
        if printed is None or re.sub(rf"{_NONCE}\d+[ae]", "", printed) != text:
            return None
        pieces = re.split(rf"{_NONCE}(\d+)a(.*?){_NONCE}\1e", printed, flags=re.DOTALL)
        literals, numbers = pieces[::3], [int(number) for number in pieces[1::3]]
        if any(_NONCE in literal for literal in literals):
            return None
        if max(numbers, default=0) >= len(cores):
            return None
        may, escapes = _escaped(messages), list[int]()
        for number, found in zip(numbers, pieces[2::3], strict=True):
            times = escapes_of(cores[number], found)
            if times is None or (times and not may[number]):
                return None
            escapes.append(times)
        return _checked(literals, numbers, escapes, messages)

    def _try(self, messages: Sequence[Mapping[str, Any]], opening: bool, inputs: str) -> str | None:
        try:
            return self._print(messages, opening, inputs)
        except jinja2.TemplateError:
            return None


def _escaped(messages: Sequence[Shaped]) -> list[bool]:
    """Return whether a template may print each core as JSON spells it, core by core."""
    return [m.is_escaped(core) for m in messages for core in range(len(m.cores))]


def _filled(messages: Sequence[Shaped], cores: Sequence[str]) -> list[dict[str, Any]]:
    filled, at = [], 0
    for message in messages:
        count = len(message.cores)
        filled.append(message.filled(cores[at : at + count]))
        at += count
    return filled


def _of_names(text: str, messages: Sequence[Shaped]) -> Printed | None:
    pieces = re.split(rf'{_NONCE}(\d+)(?:(\\*)")?{_NONCE}', text)
    literals, numbers = pieces[::3], [int(number) for number in pieces[1::3]]
    if any(_NONCE in literal for literal in literals):
        return None  # the template cuts texts, or prints parts of them
    # Escaped once, a quotation mark has one backslash in front; twice, three.
    escapes = [(len(slashes or "") + 1).bit_length() - 1 for slashes in pieces[2::3]]
    return _checked(literals, numbers, escapes, messages)


def _checked(
    literals: Sequence[str],
    order: Sequence[int],
    escapes: Sequence[int],
    messages: Sequence[Shaped],
) -> Printed:
    """Return the print, with what was lost or repeated; a lost tag counts as a core beside it."""
    times = Counter(order)
    lost = {i for i in range(sum(len(m.cores) for m in messages)) if i not in times}
    repeated = {index for index, count in times.items() if count > 1}
    at = 0
    for message in messages:
        tags = [tag for mark in message.marks for tag in mark.split() if not tag.startswith("/")]
        numbers = range(at, at + len(message.cores))[message.of_text]
        if message.rest:
            leaves = [message.leaf(core) for core in range(len(message.cores))]
            repeated -= {at + core for core, leaf in enumerate(leaves) if leaf and leaf.may_repeat}
        at += len(message.cores)
        if tags and numbers and not lost.intersection(numbers):
            printed = _beside(literals, order, numbers)
            if any(printed.count(tag) < tags.count(tag) for tag in tags):
                lost.add(numbers[0])
    return Printed(
        tuple(literals),
        tuple(order),
        tuple(escapes),
        lost=tuple(sorted(lost)),
        repeated=tuple(sorted(repeated)),
    )


def _beside(literals: Sequence[str], order: Sequence[int], numbers: range) -> str:
    """Return the literals beside the cores of one message."""
    places = [place for place, number in enumerate(order) if number in numbers]
    return "\n".join(literals[min(places) : max(places) + 2])


def _in_turn(messages: Sequence[Shaped], text: str) -> Printed:
    """Locate the cores in ``text`` one after the other."""
    cores = [core for message in messages for core in message.cores]
    literals, order, escapes, lost, at = list[str](), list[int](), list[int](), list[int](), 0
    for index, (core, may) in enumerate(zip(cores, _escaped(messages), strict=True)):
        if len(lost) > _MOST_LOST:
            lost.append(index)
            continue
        ways = [(text.find(escaped(core, times), at), times) for times in range(1 + 2 * may)]
        found, times = min([way for way in ways if way[0] >= 0], default=(-1, 0))
        if found < 0:
            lost.append(index)
            continue
        literals.append(text[at:found])
        order.append(index)
        escapes.append(times)
        at = found + len(escaped(core, times))
    literals.append(text[at:])
    return Printed(tuple(literals), tuple(order), tuple(escapes), tuple(lost))
