"""Define commands whose help shows no type for a flag such as `--version`, which takes no value."""

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

F = TypeVar("F", bound=Callable[..., Any])


def _without_types_of_flags(command: TyperCommand | TyperGroup, context: typer.Context) -> None:
    for parameter in command.get_params(context):
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""


class _Command(TyperCommand):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        _without_types_of_flags(self, ctx)
        super().format_help(ctx, formatter)


class _Group(TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        _without_types_of_flags(self, ctx)
        super().format_help(ctx, formatter)


class Application(typer.Typer):
    """An application is Typer's own, but its commands and groups show no types for flags."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, cls=_Group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Return Typer's decorator that adds a command, which is then of this module's kind."""
        return super().command(name, cls=_Command, **options)
