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


@app.command("from-llama-factory")
def from_llama_factory(
    file: Annotated[Path, typer.Argument(help="LLaMA-Factory's YAML or JSON, `stage: dpo`.")],
    overrides: Overrides = None,
    devices: Devices = 1,
) -> None:
    """Print the recipe of LLaMA-Factory's settings, and what of them has no counterpart here."""
    from flows.commands.migrate import print_recipe
    from sdpo.migration import from_llama_factory as made_of

    made = made_of(file, overrides=overrides or [], devices=devices)
    print_recipe(made, origin=file.name, console=err)


@app.command("from-axolotl")
def from_axolotl(
    file: Annotated[Path, typer.Argument(help="axolotl's YAML, with `rl`.")],
    overrides: Overrides = None,
    devices: Devices = 1,
) -> None:
    """Print the recipe of axolotl's settings, and what of them has no counterpart here."""
    from flows.commands.migrate import print_recipe
    from sdpo.migration import from_axolotl as made_of

    made = made_of(file, overrides=overrides or [], devices=devices)
    print_recipe(made, origin=file.name, console=err)
