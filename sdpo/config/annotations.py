"""Define what a setting says of itself: markers on its field, in ``Annotated[...]``.

A setting is told in one place. Its label is the field's ``title`` where its name does not say it,
its text the field's ``description``; its unit, who reads it and whether it counts for identity
are the markers here. The form, the warnings and the identities derive from them.

Every setting counts for identity. One that does not is marked :class:`NotIdentity`, with the
reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

BY_CONTENT = "a name or place: the content that it stands for bears identity by its digest"
NO_UNIT = "no unit"
SHARE = "0 to 1"

Node = Literal["data", "tokens", "reserve", "plan", "step", "supervised", "probe", "kl"]
"""These have an identity of their own besides the run: pairs, token ids, the reserve, the plan, a
step, S, a probe, a measurement of KL."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A number, or every number in a list, has this unit; a number without one says so."""

    name: str


@dataclass(frozen=True, slots=True)
class OfFormula:
    """The objectives whose formula has a parameter of the setting's name read it, no others do.

    The supervised stage has no such formula. ``symbol`` is what papers call the setting.
    """

    symbol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadIf:
    """The setting is read where one of the group's ``settings`` is ``equal_to``, or one of these,
    or is on at all.

    ``otherwise`` says why it is not: what follows "has no effect", its space or colon included;
    ``{value}`` in it is the first of these settings.
    """

    settings: tuple[str, ...]
    equal_to: str | int | tuple[str, ...] | None = None
    otherwise: str

    def why_not(self, group: BaseModel) -> str:
        """Return why nothing reads the setting of ``group``; empty where something does."""
        values = [getattr(group, name) for name in self.settings]
        wanted = self.equal_to if isinstance(self.equal_to, tuple) else (self.equal_to,)
        is_read = any(v if self.equal_to is None else v in wanted for v in values)
        return "" if is_read else self.otherwise.format(value=values[0])


@dataclass(frozen=True, slots=True)
class NotIdentity:
    """The setting does not count for identity, or not for that of the nodes in ``of``.

    ``reason`` says why."""

    reason: str
    of: tuple[Node, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SpelledOut:
    """The identities of these nodes have the setting even where it stands at its default.

    It is for settings that identities have had from the first. A later one is left out at its
    default, so that it keeps old results valid.
    """

    of: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class InTraining:
    """The setting takes the place of the training setting of its name, and counts as that one."""


_KINDS = (Unit, OfFormula, ReadIf, NotIdentity, SpelledOut, InTraining)
_Marker = TypeVar("_Marker")


def markers_of(field: FieldInfo) -> list[object]:
    """Return all markers of a field; what else its metadata has are the bounds of its values."""
    return [each for each in field.metadata if isinstance(each, _KINDS)]


def markers(field: FieldInfo, kind: type[_Marker]) -> Iterator[_Marker]:
    """Return the markers of one kind that stand on a field."""
    return (marker for marker in field.metadata if isinstance(marker, kind))


def marked(group: type[BaseModel], kind: type[object]) -> list[str]:
    """Return the names of the settings of ``group`` that have a marker of ``kind``, in order."""
    fields = group.model_fields.items()
    return [name for name, field in fields if next(markers(field, kind), None) is not None]


def unit_of(field: FieldInfo) -> str:
    """Return the unit of a setting; empty where it has no number."""
    return next((unit.name for unit in markers(field, Unit)), "")


def counts(field: FieldInfo, node: Node | None = None) -> bool:
    """Return whether a setting counts for a node's identity, or without a node for the run's."""
    return not any(not marker.of or node in marker.of for marker in markers(field, NotIdentity))


def is_spelled_out(field: FieldInfo, node: Node | None) -> bool:
    """Return whether a node's identity has the setting at its default as well."""
    return any(node in marker.of for marker in markers(field, SpelledOut))


def unread(group: BaseModel) -> dict[str, str]:
    """Return the settings that nothing reads because of others of ``group``, each with why."""
    return {
        name: why
        for name, field in type(group).model_fields.items()
        for marker in markers(field, ReadIf)
        if (why := marker.why_not(group))
    }
