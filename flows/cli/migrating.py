"""Define the commands of ``sdpo`` that make a recipe of another tool's settings."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.help import Application
from flows.cli.options import Overrides, err

app = Application()

Devices = Annotated[
    int, typer.Option("--devices", min=1, help="Devices that the batch is spread over there.")
]


@app.command("from-trl")
def from_trl(
    file: Annotated[
        Path,
        typer.Argument(help="Python script with a DPOConfig, or YAML or JSON for TRL's commands."),
    ],
    overrides: Overrides = None,
    devices: Devices = 1,
) -> None:
    """Print the recipe of a training script for TRL, and what of it has no counterpart here.

    The script is read, never run: `sdpo from-trl train.py > recipe.yaml`.
    """
    from flows.commands.migrate import print_recipe
    from sdpo.migration import from_trl as made_of

    made = made_of(file, overrides=overrides or [], devices=devices)
    print_recipe(made, origin=file.name, console=err)
