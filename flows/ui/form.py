"""Make the form of a flow in the UI: a label, a description and a place for each parameter."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from prefect import Flow
from prefect.utilities.callables import parameter_schema
from pydantic import Field

from sdpo.config.annotations import Unit
from sdpo.config.labels import label_of

F = TypeVar("F", bound=Flow[..., Any])


def form(descriptions: Mapping[str, str]) -> Callable[[F], F]:
    """Return a decorator that describes a flow's parameters; their labels come from their names.

    Prefect reads a parameter's description from its default if that is a pydantic field; the
    function itself keeps the plain default, so that it can be called as usual.
    """

    def described(flow: F) -> F:
        signature = inspect.signature(flow.fn, eval_str=True)
        parameters = [
            parameter.replace(default=_field(parameter, descriptions[name], position))
            for position, (name, parameter) in enumerate(signature.parameters.items())
        ]
        flow.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        flow.parameters = parameter_schema(flow)
        return flow

    return described


def _field(parameter: inspect.Parameter, description: str, position: int) -> Any:
    said = getattr(parameter.annotation, "__metadata__", ())
    unit = next((each.name for each in said if isinstance(each, Unit)), "")
    title = label_of(parameter.name, unit=unit)
    extra: dict[str, Any] = {"title": title, "position": position}
    if unit:
        extra["unit"] = unit
    return Field(parameter.default, description=description, json_schema_extra=extra)
