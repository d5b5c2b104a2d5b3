"""What a chain is made of, as values: nothing here does anything.

A chain is a list of them, and an interpreter goes through it: :mod:`sdpo.chain.execute` does what
is not done yet, :mod:`sdpo.history.dryrun` says what it would do, and
:mod:`sdpo.history.verify_chain` compares what is there with what should be. What a node depends on
may only be known once the nodes before it are done, so it is a function that an interpreter asks
when it comes to the node.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sdpo.chain.context import Found
from sdpo.system.json_values import JsonObject

Identity: TypeAlias = JsonObject
"""What a node's result depends on, of JSON types: what its record's digest covers."""


EVERYTHING = "*"
"""As an input: whatever was done before."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a node's making gave: its record's ``outputs`` (None: it has none) and its files."""

    outputs: JsonObject | None
    files: list[Path]


Find: TypeAlias = "Callable[[Node], Found]"
"""Whether another node stands already, which then is shared from an origin that has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A result with a record: it stands while its identity is the same and its files verify.

    ``title``: under what name a host calls it; empty: within that of the expansion it is part of.
    ``inputs`` name the nodes whose results it reads. ``make`` gives what the record is written of,
    or None where the stage that made the result wrote the record itself. ``first`` are done
    before it, but only where it has to be done itself. ``is_told``: a record that stands is worth a
    word. ``is_view``: no node's identity rests on it.
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
    """A result that runs share through the cache, and that has no record.

    ``fault`` says why it has to be made, "" where it stands. ``make`` gets the descriptors of the
    locks that its stage holds as well. ``lock``: held while it is made, by a run at a time.
    """

    name: str
    fault: Callable[[], str]
    make: Callable[[Sequence[int]], None]
    title: str = ""
    inputs: tuple[str, ...] = ()
    lock: Path | None = None
    what: str = ""
    """What the lock guards, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A look at what is there, which may refuse it: every interpreter takes it."""

    look: Callable[[], None]
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """Something that leaves no result of its own: it is done where the chain is executed alone."""

    do: Callable[[], None]
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """Parts that are known once the nodes before it are done.

    ``foreseen`` are the nodes that it will come to for certain, as far as can be told before;
    ``rule`` says in words what it expands into, for where nothing can be told.
    """

    expand: "Callable[[], Sequence[Part]]"
    title: str = ""
    foreseen: "Callable[[], Sequence[str]]" = tuple
    rule: str = ""


Part: TypeAlias = Node | Cached | Look | Errand | Expansion
