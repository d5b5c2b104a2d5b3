"""Define the command ``sdpo slurm``: a batch script for a cluster."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.help import Application
from flows.cli.options import Limit, Name, Overrides, Recipe, RunsDir, configured

app = Application()


@app.command()
def slurm(
    recipe: Recipe,
    overrides: Overrides = None,
    name: Name = "",
    limit: Limit = 0,
    runs_dir: RunsDir = None,
    partition: Annotated[
        str, typer.Option("--partition", help="Partition; else the default.")
    ] = "",
    account: Annotated[str, typer.Option("--account", help="Account; else the default.")] = "",
    time: Annotated[str, typer.Option("--time", help="Time of one job, as 4:00:00.")] = "",
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=0, help="GPUs of a node; else its processes, none on a CPU."),
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option("--extra", help="Another option of sbatch, as --qos=high; may be repeated."),
    ] = None,
) -> None:
    """Print a batch script for SLURM: `sdpo slurm RECIPE | sbatch`. A job whose time is up goes on
    in the next."""
    from flows.commands.slurm import Job, batch_script

    config = configured(recipe, overrides, name, limit, runs_dir)
    given = str(recipe.absolute()) if recipe.is_file() else str(recipe)
    arguments = [given, *(word for one in overrides or [] for word in ("--set", one))]
    arguments += ["--name", name] if name else []
    arguments += ["--limit", str(limit)] if limit else []
    arguments += ["--runs-dir", str(runs_dir)] if runs_dir else []
    job = Job(partition=partition, account=account, time=time, gpus=gpus, extra=extra or [])
    print(batch_script(config, arguments, job, folder=Path.cwd()), end="")
