"""Other values for settings, made from what a field accepts, and the identities of a recipe."""

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from sdpo.config import RunConfig
from sdpo.config.choices import OneOf
from sdpo.identity.payloads import (
    data_identity,
    run_identity,
    step_identity,
    supervised_identity,
    tokens_identity,
)
from sdpo.identity.scoring import scoring_identities

INPUTS = {"data.a": "d" * 8, "model": "m" * 8, "tokenizer": "t" * 8}


def group_within(annotation: Any) -> type[BaseModel] | None:
    """The group that a field holds, itself or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((g for a in get_args(annotation) if (g := group_within(a))), None)


def other_values(field: FieldInfo) -> Iterator[Any]:
    """Values that a field of plain settings accepts and that are not its default."""
    annotation: Any = field.annotation
    bounds = tuple(field.metadata)
    whole: Any = Annotated[annotation, *bounds] if bounds else annotation
    adapter: TypeAdapter[Any] = TypeAdapter(whole)
    for value in _candidates(whole):
        try:
            accepted = adapter.validate_python(value)
        except ValidationError:
            continue
        if accepted != field.default:
            yield accepted


def _candidates(annotation: Any) -> list[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if named := next((each for each in arguments if isinstance(each, OneOf)), None):
        return list(named.names())
    if origin is Literal:
        return list(arguments)
    if origin is list:
        return [[value] for value in _candidates(arguments[0])]
    if origin is dict:
        return [{"enable_thinking": False}]
    if origin in (Annotated, Union, types.UnionType):
        return [v for argument in arguments for v in _candidates(argument)]
    numbers = [0.05, 0.3, 0.9, 3.0]
    plain = {bool: [True, False], str: ["x", "y"], int: [3, 7, 96, 4096], float: numbers}
    return plain.get(annotation, [])


def identities(config: RunConfig) -> dict[str, Any]:
    """Every payload that a recipe alone decides, inputs and tokenizer being what they are."""
    group = {"launch": config.launch, "model": config.model}
    steps = [config.training_of(number + 1) for number in range(len(config.steps) + 1)]
    tokens = {"content": "c", "tokenizer": "t", "clock": "", "ends": [2]}
    return {
        "run": run_identity(config, INPUTS),
        "data": data_identity(config, INPUTS, default_format="chat"),
        "tokens": tokens_identity(config, **tokens),
        "steps": [step_identity(training, inputs=INPUTS, **group) for training in steps],
        "scoring": [scoring_identities("d", training=training, **group) for training in steps],
        "supervised": supervised_identity(
            config.supervised, config.training, inputs=INPUTS, **group
        ),
    }


def nested(path: str, value: Any) -> dict[str, Any]:
    """``value`` at a dotted path as a recipe has it; ``0`` is the first of a list."""
    head, _, rest = path.partition(".")
    if not rest:
        return {head: value}
    if rest.startswith("0."):
        return {head: [nested(rest.removeprefix("0."), value)]}
    return {head: nested(rest, value)}


def settings(group: type[BaseModel], where: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every plain setting within a group, by its dotted path."""
    for name, field in group.model_fields.items():
        path, inner = f"{where}{name}", group_within(field.annotation)
        if inner is None:
            yield path, field
        else:
            is_list = get_origin(field.annotation) is list
            yield from settings(inner, f"{path}.0." if is_list else f"{path}.")


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two recipes as one; lists of groups are joined entry by entry."""
    result = dict(one)
    for key, value in other.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            result[key] = merged(old, value)
        elif isinstance(old, list) and old and isinstance(old[0], Mapping):
            result[key] = [merged(old[0], value[0])]
        else:
            result[key] = value
    return result
