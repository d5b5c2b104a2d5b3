"""Define the commands of ``sdpo`` about models in use: promote, rollback, current, retrain."""

from typing import Annotated

import typer

from flows.cli.help import Application
from flows.cli.options import Overrides, RunsDir, Step, Target, Wait, out, runs_folder

app = Application()

ModelName = Annotated[str, typer.Argument(help="Name that a run was promoted under.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the registry.")]


@app.command()
def promote(
    run: Target,
    step: Step = None,
    name: Annotated[
        str, typer.Option("--name", help="Name; else that of the runs it comes from.")
    ] = "",
    reason: Reason = "",
    runs_dir: RunsDir = None,
) -> None:
    """Make a finished run's model the current one of a name, after a check of its digest."""
    from flows.commands import models

    models.promote_run(
        run, step=step, name=name, why=reason, runs_dir=runs_folder(runs_dir), console=out
    )


@app.command()
def rollback(
    name: ModelName,
    to: Annotated[
        int | None, typer.Option("--to", min=1, help="Version; else the one before.")
    ] = None,
    reason: Reason = "",
    runs_dir: RunsDir = None,
) -> None:
    """Go back to the version before the current one, or to any other; no version is ever lost."""
    from flows.commands import models

    models.roll_back(name, to=to, why=reason, runs_dir=runs_folder(runs_dir), console=out)


@app.command()
def current(
    name: Annotated[str, typer.Argument(help="Name; else all names.")] = "",
    path: Annotated[bool, typer.Option("--path", help="Only the model's folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    runs_dir: RunsDir = None,
) -> None:
    """Show which model is in use, and which ones were before."""
    from flows.commands import models

    models.show_current(
        name, only_path=path, as_json=as_json, runs_dir=runs_folder(runs_dir), console=out
    )


@app.command()
def retrain(
    name: Annotated[str, typer.Argument(help="Name that a run was promoted under, or the run.")],
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="New data: file or hub name; may be repeated."),
    ] = None,
    prompts: Annotated[
        str,
        typer.Option("--prompts", help="In place of data: prompts that the model in use answers."),
    ] = "",
    generate: Annotated[
        list[str] | None,
        typer.Option(
            "--generate",
            help="With --prompts: how pairs are made of answers, key=value over the recipe's last "
            "rounds (judge.rule=asks_back, n=8); may be repeated.",
        ),
    ] = None,
    overrides: Overrides = None,
    min_new_pairs: Annotated[
        int,
        typer.Option("--min-new-pairs", min=1, help="Fewer new pairs, or prompts, make no step."),
    ] = 1,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", help="Setting of the gate, as min_pairs=50; may be repeated."),
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask before the model in use is replaced.")
    ] = False,
    runs_dir: RunsDir = None,
    wait: Wait = False,
) -> None:
    """Train a model's next step on pairs that it has not seen; promote it if the gate agrees.

    With --prompts it answers new prompts, and pairs are made of that. Exit code 0: promoted, or
    nothing new; 1: a step was made and the model in use stays.
    """
    from flows.commands import models
    from sdpo.history.new_prompts import new_round

    code = models.retrain_named(
        name,
        source or [],
        made=new_round(prompts, generate or []),
        overrides=overrides or [],
        min_new_pairs=min_new_pairs,
        gate=gate or [],
        ask=ask,
        wait=wait,
        runs_dir=runs_folder(runs_dir),
        console=out,
    )
    raise typer.Exit(code)
