"""Make the form of a flow in the UI: a label, a description and a place for each parameter."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from annotated_types import MinLen
from prefect import Flow
from prefect.utilities.callables import parameter_schema
from pydantic import Field, GetJsonSchemaHandler
from pydantic.types import StringConstraints
from pydantic_core import CoreSchema

from sdpo.config.annotations import Unit
from sdpo.config.labels import label_of
from sdpo.system.json_values import Json

F = TypeVar("F", bound=Flow[..., Any])

RUNS_DIR = "Folder of the runs, and of the registry of models in use."
"""Short forms say this of their parameter ``runs_dir``."""
_SOMETHING = r"\S"
"""A text that has more than spaces matches this."""


def required_text(*, may_be_empty: bool = False) -> StringConstraints:
    """Mark a text without which its form cannot be sent.

    It keeps a default all the same, by which a call from elsewhere is refused in the flow's words.
    ``may_be_empty``: parameters of before have an empty one, which the flow alone refuses.
    """
    return StringConstraints(pattern=None if may_be_empty else _SOMETHING)


def required_list() -> MinLen:
    """Mark a list without an entry of which its form cannot be sent."""
    return MinLen(1)


class Asks:
    """Mark a group of settings without some of which its form cannot be sent.

    The group keeps their defaults, by which a call from elsewhere is refused in the flow's words.
    Empty ones are that flow's to refuse as well: parameters of before have them.

    ``instead``: the setting that is asked for where this one is left out.
    """

    def __init__(self, *names: str, instead: str = "") -> None:
        self._names, self._instead = names, instead

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Json]:
        """Give the group's schema, in which these settings are required and have no default.

        Where another one may stand instead they keep it: they are not required always.
        """
        schema = dict(handler.resolve_ref_schema(handler(core_schema)))
        wanted: dict[str, Json] = {"required": list(self._names)}
        if self._instead:  # the UI would draw `anyOf` as a choice of forms; it draws no `if`
            return schema | {"if": {"not": {"required": [self._instead]}}, "then": wanted}
        properties = {name: dict(field) for name, field in schema["properties"].items()}
        for name in self._names:
            del properties[name]["default"]
        return schema | {"properties": properties, **wanted}


class Empty:
    """Mark a parameter that may be left empty in the form: a number, or one of some names.

    ``names`` are asked for when the schema is made, since plug-ins are looked for then.
    """

    def __init__(
        self,
        kind: Literal["string", "number", "integer"],
        *,
        above: float | None = None,
        least: float | None = None,
        names: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self._kind = kind
        self._bounds = {"exclusiveMinimum": above, "minimum": least}
        self._names = names

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Json]:
        """Give one type and no choice of two, of which the UI would make two tabs."""
        schema: dict[str, Json] = {"type": self._kind}
        schema |= {name: bound for name, bound in self._bounds.items() if bound is not None}
        return schema | ({"enum": list(self._names())} if self._names else {})


def form(
    descriptions: Mapping[str, str], *, labels: Mapping[str, str] = MappingProxyType({})
) -> Callable[[F], F]:
    """Return a decorator that describes a flow's parameters.

    Their labels come from their names, or are in ``labels``.

    Prefect reads a parameter's description from its default if that is a pydantic field; the
    function itself keeps the plain default, so that it can be called as usual. One that is
    marked by :func:`required_text`, :func:`required_list` or :class:`Asks` has none in the form.
    """

    def described(flow: F) -> F:
        signature = inspect.signature(flow.fn, eval_str=True)
        parameters = [
            parameter.replace(
                default=_field(parameter, descriptions[name], position, labels.get(name, ""))
            )
            for position, (name, parameter) in enumerate(signature.parameters.items())
        ]
        flow.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        flow.parameters = parameter_schema(flow)
        return flow

    return described


def _field(parameter: inspect.Parameter, description: str, position: int, label: str) -> Any:
    said = getattr(parameter.annotation, "__metadata__", ())
    unit = next((each.name for each in said if isinstance(each, Unit)), "")
    title = label_of(parameter.name, unit=unit, title=label)
    extra: dict[str, Any] = {"title": title, "position": position}
    if unit:
        extra["unit"] = unit
    is_required = any(isinstance(each, StringConstraints | MinLen | Asks) for each in said)
    default = inspect.Parameter.empty if is_required else parameter.default
    return Field(default, description=description, json_schema_extra=extra)
