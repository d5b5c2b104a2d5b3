"""Make the page of every setting of a recipe from the fields that define them."""

import types
from collections.abc import Iterator
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.site.markdown import code, escaped, table
from sdpo.config import RunConfig
from sdpo.config.annotations import NO_UNIT, NotIdentity, OfFormula, ReadIf, markers, unit_of
from sdpo.config.choices import OneOf

HEAD = ("Setting", "Value", "Default", "What it does")
_BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}


def page() -> str:
    """Return the page: one table a group, a row a setting."""
    return (
        "# Settings\n\nEvery setting of a recipe, in the order of the groups. `sdpo schema` prints "
        "the same as JSON\nschema. Any of them can be given with `--set group.setting=value`. A "
        "setting whose value does not\nchange a result is marked *not part of identity*: a run is "
        "not made again for it.\n\n"
    ) + "\n".join(_sections(RunConfig, ""))


def settings(group: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield the full name of every setting that has a row."""
    for name, field in group.model_fields.items():
        inner, listed = _group_of(field)
        if inner is None:
            yield prefix + name
        elif inner.__name__ == "StepConfig":
            yield f"{prefix}{name}"
        else:
            yield from settings(inner, f"{prefix}{name}.{'N.' if listed else ''}")


def _sections(group: type[BaseModel], prefix: str) -> Iterator[str]:
    plain, inner = [], []
    for name, field in group.model_fields.items():
        found, listed = _group_of(field)
        if found is None or found.__name__ == "StepConfig":
            plain.append((name, field))
        else:
            inner.append((found, f"{prefix}{name}.{'N.' if listed else ''}", field))
    title = prefix.removesuffix(".").removesuffix(".N") or "The recipe"
    said = escaped(" ".join((group.__doc__ or "").split()))
    yield f"## {title}\n\n{said}\n"
    if plain:
        yield table(HEAD, [_row(prefix + name, field) for name, field in plain])
    for found, below, _ in inner:
        yield from _sections(found, below)


def _group_of(field: FieldInfo) -> tuple[type[BaseModel] | None, bool]:
    """Return the group that a field holds, if it does, and whether it is a list of such groups."""
    kind = field.annotation
    listed = get_origin(kind) is list
    inner = get_args(kind)[0] if listed else kind
    return (inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None), listed


def _row(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    if name == "steps":
        value = "list of groups: any settings of [training](#training)"
    else:
        value = "; ".join([_value(field), *_bounds(field)])
    unit = unit_of(field)
    if unit not in ("", NO_UNIT):
        value += f" ({unit})"
    default = field.get_default(call_default_factory=True)
    shown = "" if default is PydanticUndefined else _literal(default)
    return (
        code(name),
        value,
        code(shown),
        " ".join([escaped(field.description or ""), *_marks(field)]),
    )


def _value(field: FieldInfo) -> str:
    for choice in markers_of_choice(field):
        return ", ".join(code(name) for name in choice.names() if name) + ", or a plug-in's"
    return _kind(field.annotation)


def markers_of_choice(field: FieldInfo) -> list[OneOf]:
    """Return the markers of a field whose values are names of parts."""
    return [each for each in field.metadata if isinstance(each, OneOf)]


def _kind(kind: object) -> str:
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        for each in inside[1:]:
            if isinstance(each, OneOf):
                return ", ".join(code(name) for name in each.names() if name) + ", or a plug-in's"
        return _kind(inside[0])
    if origin is Literal:
        return ", ".join(code(str(value)) for value in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(each) for each in inside if each is not type(None))
    if origin in (list, tuple):
        return f"list of {_kind(inside[0])}"
    if origin is dict:
        return "mapping"
    names = {bool: "yes or no", int: "whole number", float: "number", str: "text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))  # type: ignore[call-overload]


def _bounds(field: FieldInfo) -> list[str]:
    return [
        text.format(bound)
        for each in field.metadata
        for key, text in _BOUNDS.items()
        if (bound := getattr(each, key, None)) is not None
    ]


def _marks(field: FieldInfo) -> Iterator[str]:
    for _ in markers(field, OfFormula):
        yield "Read by the objectives whose formula has it."
    for each in markers(field, ReadIf):
        on = " or ".join(code(name) for name in each.settings)
        value = "set" if each.equal_to is None else code(str(each.equal_to))
        yield f"Read where {on} is {value}."
    for mark in markers(field, NotIdentity):
        if not mark.of:
            yield f"*Not part of identity*: {escaped(mark.reason)}."


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value == "":
        return '""'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return str(value)
