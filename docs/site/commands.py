"""Make the page of the command line from the help that the commands print."""

from collections.abc import Iterator

import typer
from typer.testing import CliRunner

from docs.site.markdown import block
from flows.cli.app import app


def commands() -> Iterator[tuple[str, ...]]:
    """Yield the words of every command, groups before what is in them."""

    def below(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from below(inner, (*path, name))

    return below(typer.main.get_command(app), ())


def page() -> str:
    """Return the page: the help of every command, as it is printed."""
    return (
        "# Command line\n\nExit codes: 0 done, 1 a fault or an answer that the command's help "
        "explains, 2 the user's mistake,\n130 interrupted.\n\n"
    ) + "\n".join(f"## {' '.join(('sdpo', *path))}\n\n{block(_help(path))}" for path in commands())


def _help(path: tuple[str, ...]) -> str:
    environment = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = CliRunner().invoke(app, [*path, "--help"], env=environment, prog_name="sdpo")
    if done.exit_code:
        raise RuntimeError(f"sdpo {' '.join(path)} --help: {done.output}")
    return "\n".join(line.rstrip() for line in done.output.strip("\n").splitlines())
