"""Commands whose help shows a type where a value is wanted: `--version` takes none."""

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
    """A Typer application whose commands and groups are of this kind."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, cls=_Group, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """As of every application."""
        return super().command(name, cls=_Command, **options)
