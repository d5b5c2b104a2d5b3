"""Say what to write where a value is in the place of a group or a list of settings."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

_MOST_SHOWN = 200
_MOST_STEPS = 10


def misplaced(fault: str, location: Sequence[str], value: object, kind: type[BaseModel]) -> str:
    """Say what to write where a mapping or a list belongs and another ``value`` is given.

    It is empty where ``fault``, the type of pydantic's error at ``location`` of ``kind``, is
    another.
    """
    group = group_at(location, kind)
    if fault in ("model_type", "model_attributes_type") and group is not None:
        return f"a group of settings stands here, {_instead(group, value)}"
    if fault == "list_type":
        return f"a list stands here, {_list_instead(group, value)}"
    return ""


def _instead(group: type[BaseModel], value: object) -> str:
    main = getattr(group, "main_setting", "")
    if value is None:
        return "and nothing is given: leave the key out, or write {} for the defaults"
    if main and isinstance(value, str):
        return f"not a value alone: write {_yaml({main: value})}"
    if isinstance(value, bool) and "enabled" in group.model_fields:
        return f"not a value alone: write {_yaml({'enabled': value})}"
    return f"not {_yaml(value)}: write it as {{{main or next(iter(group.model_fields))}: ...}}"


def _list_instead(group: type[BaseModel] | None, value: object) -> str:
    main = getattr(group, "main_setting", "")
    if value is None:
        return "and nothing is given: leave the key out, or write []"
    if group is None:
        return f"also of one: write {_yaml([value])}"
    if isinstance(value, Mapping) and value.keys() <= group.model_fields.keys():
        return f"also of one: write {_yaml([dict(value)])}"
    if isinstance(value, str) and main:
        return f"also of one: write {_yaml([{main: value}])}"
    if type(value) is int and not main and 0 < value <= _MOST_STEPS:
        return f"with a group for each: write [{', '.join(['{}'] * value)}]"
    return f"not {_yaml(value)}: write it as [{{{main or next(iter(group.model_fields))}: ...}}]"


def _yaml(value: object) -> str:
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    except yaml.YAMLError:
        text = repr(value)
    text = text.removesuffix("\n").removesuffix("\n...")
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."


def group_at(location: Sequence[str], kind: type[BaseModel]) -> type[BaseModel] | None:
    """Return the group of settings that a location leads to, entries of lists included."""
    group: type[BaseModel] | None = kind
    for part in location:
        if part.isdigit() or group is None:
            continue
        field = group.model_fields.get(part)
        group = group_type(field.annotation) if field else None
    return group


def group_type(annotation: Any) -> type[BaseModel] | None:
    """Return the group of settings that an annotation is of, or is a list of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, types.UnionType, typing.Union):
        return next((g for a in typing.get_args(annotation) if (g := group_type(a))), None)
    return None
