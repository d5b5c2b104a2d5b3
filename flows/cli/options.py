"""Define what the modules of the command line share: consoles, and options of many commands."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from flows.recipes import presets
from sdpo.config import RunConfig, StoreConfig
from sdpo.system.streams import visible

_PLAIN_COLUMNS = 140


class SafeConsole(Console):
    """A safe console sends the terminal no control sequences but its own.

    What data, recipes and model folders say is shown with control characters made visible,
    whichever way it came to be printed.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield segments as every console does, with the text of each made harmless."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def make_console(*, stderr: bool = False) -> Console:
    """Return a console: at least 140 columns wide where the output goes to a file or a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream is not None and stream.isatty()
    width = None if terminal else max(_PLAIN_COLUMNS, shutil.get_terminal_size().columns)
    return SafeConsole(stderr=stderr, width=width, emoji=False)


out = make_console()
err = make_console(stderr=True)

Recipe = Annotated[
    Path, typer.Argument(help="Recipe file (YAML), or the name of a preset: see `sdpo recipes`.")
]
Name = Annotated[str, typer.Option("--name", help="Name of the run; else the recipe's.")]
Limit = Annotated[int, typer.Option("--limit", help="Pairs per source, for a smoke run; 0: all.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: group.key=value; may be given many times."),
]
RunsDir = Annotated[
    Path | None, typer.Option("--runs-dir", help="Folder of the runs; else the recipe's, or runs/.")
]
Wait = Annotated[
    bool, typer.Option("--wait", help="Wait for another process that works on the run.")
]
Target = Annotated[str, typer.Argument(help="Run or checkpoint: NAME, NAME/step-2, or a path.")]

Step = Annotated[int | None, typer.Option("--step", help="Step; else the last.")]


def runs_folder(runs_dir: Path | None) -> Path:
    """Return the folder of the runs: the one that is given, else the default of every recipe."""
    return runs_dir or Path(StoreConfig().runs_dir)


def run_folder(run: str, runs_dir: Path | None) -> Path:
    """Return the folder of a run that is given by name or, as shells complete it, by path."""
    from sdpo.history.target import locate_run

    return locate_run(run, runs_dir=runs_folder(runs_dir)).path


def configured(
    recipe: Path, overrides: list[str] | None, name: str, limit: int, runs_dir: Path | None
) -> RunConfig:
    """Return the recipe of a file or preset with what the options change in it."""
    return presets.configured(
        recipe, overrides=overrides or [], name=name, limit=limit, runs_dir=runs_dir
    )
