"""How the engine's named parts are called: plainly, or by whoever wants to know of each of them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

T = TypeVar("T")


class Call(Protocol):
    """Runs ``function(*args)`` under a name that a person understands."""

    def __call__(self, name: str, function: Callable[..., T], /, *args: object) -> T:
        """The function's result."""


def plain_call(_name: str, function: Callable[..., T], /, *args: object) -> T:
    """Call ``function`` here and now."""
    return function(*args)


Occupy = Callable[[Sequence[str]], AbstractContextManager[object]]
"""Holds what else limits the use of these devices, for as long as its context lasts."""


def unlimited(_devices: Sequence[str]) -> AbstractContextManager[object]:
    """Nothing else limits them."""
    return nullcontext()
