"""What the modules of the command line share: consoles, and options that many commands have."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sdpo.config import StoreConfig

_PLAIN_COLUMNS = 120


def make_console(*, stderr: bool = False) -> Console:
    """A console whose tables are not cut where the output goes to a file or a pipe."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal else max(_PLAIN_COLUMNS, shutil.get_terminal_size().columns)
    return Console(stderr=stderr, width=width)


out = make_console()

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


def runs_folder(runs_dir: Path | None) -> Path:
    """The folder of the runs, where it is not given that of every recipe."""
    return runs_dir or Path(StoreConfig().runs_dir)
