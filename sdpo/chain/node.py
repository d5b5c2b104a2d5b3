"""Define what a chain is made of, as values: nothing here does anything.

A chain is a list of parts, and an interpreter goes through it: :mod:`sdpo.chain.execute` does what
is not done yet, :mod:`sdpo.history.dryrun` says what it would do, and
:mod:`sdpo.history.verify_chain` compares what is there with what should be. What a node depends on
may be known only once the nodes before it are done, so its identity is a function that an
interpreter calls when it comes to the node.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sdpo.chain.context import Found
from sdpo.system.json_values import JsonObject

Identity: TypeAlias = JsonObject
"""An identity is what a node's result depends on, of JSON types; its record's digest covers it."""


EVERYTHING = "*"
"""As an input, this means everything that was done before."""


@dataclass(frozen=True, slots=True)
class Made:
    """Making a node gave this: its record's ``outputs`` (None: it has none) and its files."""

    outputs: JsonObject | None
    files: list[Path]


Find: TypeAlias = "Callable[[Node], Found]"
"""A function that says whether another node stands; an origin that has it then shares it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node is a result with a record: it stands while its identity and its files are unchanged.

    ``title`` is the name under which a host calls it; empty: it is part of the expansion that it
    came from. ``inputs`` name the nodes whose results it reads. ``make`` returns what its record is
    written from, or None where the stage that made the result wrote the record itself. ``first``
    are parts that are done before it, but only where it has to be done itself. ``is_told``: it is
    reported when its record stands. ``is_view``: no other node's identity depends on it.
    """

    name: str
    identity: Callable[[], Identity]
    make: Callable[[Find], Made | None]
    title: str = ""
    inputs: tuple[str, ...] = ()
    first: "Callable[[], Sequence[Part]]" = tuple
    is_told: bool = True
    is_view: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """A cached result is shared by runs through the cache, and has no record.

    ``fault`` returns why it has to be made, "" where it stands. ``make`` gets the descriptors of
    the locks that its stage holds as well. ``lock`` is held while it is made, by one run at a time.
    """

    name: str
    fault: Callable[[], str]
    make: Callable[[Sequence[int]], None]
    title: str = ""
    inputs: tuple[str, ...] = ()
    lock: Path | None = None
    what: str = ""
    """These words name what the lock guards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A look examines what is there and may refuse it; every interpreter takes it."""

    look: Callable[[], None]
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """An errand leaves no result of its own: it is done only where the chain is executed."""

    do: Callable[[], None]
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """An expansion gives parts that are known only once the nodes before it are done.

    ``foreseen`` returns the nodes that it will certainly come to, as far as can be told before;
    ``rule`` says in words what it expands into, for where nothing can be told.
    """

    expand: "Callable[[], Sequence[Part]]"
    title: str = ""
    foreseen: "Callable[[], Sequence[str]]" = tuple
    rule: str = ""


Part: TypeAlias = Node | Cached | Look | Errand | Expansion
