"""The help of every command: a type is shown where a value is wanted, and nowhere else."""

from collections.abc import Iterator

import pytest
import typer
from command_line import Sdpo

from flows.cli.app import app


def commands() -> Iterator[tuple[str, ...]]:
    def below(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(inner, (*path, name))

    return below(typer.main.get_command(app), ())


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_no_flag_is_shown_as_if_it_took_a_value(sdpo: Sdpo, command: tuple[str, ...]) -> None:
    shown = sdpo(*command, "--help").out
    assert "Show this message and exit." in shown
    assert "bool" not in shown


def test_a_value_that_is_wanted_is_shown_and_flags_still_work(sdpo: Sdpo) -> None:
    assert "--limit" in sdpo("run", "--help").out
    assert "<int>" in sdpo("run", "--help").out
    assert sdpo("--version").out.strip()
