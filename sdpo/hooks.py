"""Define how the engine's named parts are called: plainly, or by who wants to know of each."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeVar

from sdpo.events import Event, Listener

T = TypeVar("T")


class Call(Protocol):
    """It runs ``function(*args)`` under a name that a person understands."""

    def __call__(self, name: str, function: Callable[..., T], /, *args: object) -> T:
        """Return the function's result."""


def plain_call(_name: str, function: Callable[..., T], /, *args: object) -> T:
    """Call ``function`` here and now."""
    return function(*args)


Occupy = Callable[[Sequence[str]], AbstractContextManager[object]]
"""It holds what else limits the use of these devices, for as long as its context lasts."""


def unlimited(_devices: Sequence[str]) -> AbstractContextManager[object]:
    """Return a context that holds nothing: nothing else limits the devices."""
    return nullcontext()


def unheard(_event: Event) -> None:
    """Do nothing: nobody listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host runs the chain, and has this for the engine.

    ``call`` runs what has a name of its own: a part of the chain, a phase of a stage. ``listen``
    hears of what happens. ``occupy`` holds what limits the use of devices besides the machine's
    own locks, while a stage runs.
    """

    call: Call = plain_call
    listen: Listener = unheard
    occupy: Occupy = unlimited
