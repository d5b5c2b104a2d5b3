"""Define the commands of ``sdpo`` about several recipes at once: compare, sweep."""

from enum import StrEnum
from typing import Annotated

import typer

from flows.cli.help import Application
from flows.cli.options import Limit, Overrides, Recipe, RunsDir, Wait, configured, err, out

app = Application()


class Keep(StrEnum):
    """What stays of the runs of a study once their numbers are known."""

    MODELS = "models"
    NONE = "none"


StudyName = Annotated[
    str, typer.Option("--name", help="Name of the study; else the recipe's and what it is.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would take; train nothing.")]
Kept = Annotated[
    Keep,
    typer.Option("--keep", help="`models`: runs stay whole; `none`: their numbers alone stay."),
]
SideBySide = Annotated[
    int,
    typer.Option(
        "--side-by-side",
        help="So many runs at a time, each on devices of its own; on a CPU they share it.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


@app.command()
def compare(
    recipe: Recipe,
    arms: Annotated[
        str,
        typer.Option(
            "--arms",
            help="Arms, the first of which the others are compared with: sdpo, dpo, stratified, "
            "random, easy_first, hard_first, target_base, reference_base, or runs that are there.",
        ),
    ] = "sdpo,dpo",
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", help="Arm of your own, name:key=value; may be given many times."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Training seeds of each arm.")] = 1,
    partition_seeds: Annotated[
        bool, typer.Option("--partition-seeds", help="Draw the partition anew with each seed too.")
    ] = False,
    overrides: Overrides = None,
    name: StudyName = "",
    limit: Limit = 0,
    runs_dir: RunsDir = None,
    keep: Kept = Keep.MODELS,
    side_by_side: SideBySide = 1,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    wait: Wait = False,
) -> None:
    """Train a recipe in several ways and say, with intervals, which is better.

    Exit code 0: all arms are compared; 1: an arm failed.
    """
    from flows.commands.compare import compare_arms

    code = compare_arms(
        configured(recipe, overrides, "", limit, runs_dir),
        arms=arms,
        own=arm or [],
        seeds=seeds,
        partition_seeds=partition_seeds,
        name=name,
        keep=keep.value,
        side_by_side=side_by_side,
        dry_run=dry_run,
        as_json=as_json,
        wait=wait,
        console=out,
        progress=err if as_json else out,
    )
    raise typer.Exit(code)


@app.command()
def sweep(
    recipe: Recipe,
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            help="Setting and its values, key=0.03,0.1,0.3; with --trials also a range, "
            "key=0.01..0.3 or key=log:0.01..0.3; may be given many times.",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", help="Let Optuna propose so many; 0: every combination.")
    ] = 0,
    seeds: Annotated[int, typer.Option("--seeds", help="Training seeds of each combination.")] = 1,
    prune: Annotated[
        bool, typer.Option("--prune", help="With --trials: end trials early that fall behind.")
    ] = False,
    overrides: Overrides = None,
    name: StudyName = "",
    limit: Limit = 0,
    runs_dir: RunsDir = None,
    keep: Kept = Keep.MODELS,
    side_by_side: SideBySide = 1,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    wait: Wait = False,
) -> None:
    """Train a recipe with other settings, each combination or as Optuna proposes; choose the best.

    One part of the reserve chooses, the other one reports. Exit code 0: all trials are compared; 1:
    a trial failed.
    """
    from flows.commands.compare import sweep_settings

    code = sweep_settings(
        configured(recipe, overrides, "", limit, runs_dir),
        over=over or [],
        trials=trials,
        seeds=seeds,
        prune=prune,
        name=name,
        keep=keep.value,
        side_by_side=side_by_side,
        dry_run=dry_run,
        as_json=as_json,
        wait=wait,
        console=out,
        progress=err if as_json else out,
    )
    raise typer.Exit(code)
