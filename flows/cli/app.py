"""Define the command ``sdpo`` and run it.

Exit codes: 0 done, 1 a fault or an answer that the command's help explains, 2 the user's mistake,
130 interrupted. Commands load what they need when they are called: ``--help`` must not wait for
anything, and Prefect is loaded only where it is asked for.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from typer.main import get_command

from flows.cli import batch, finished, migrating, models, nodes, publishing, server, studies
from flows.cli.exits import exit_code, tell
from flows.cli.help import Application
from flows.cli.options import (
    Limit,
    Name,
    Overrides,
    Recipe,
    RunsDir,
    Wait,
    configured,
    out,
    run_folder,
    runs_folder,
)
from flows.recipes.presets import printed
from sdpo import __version__
from sdpo.config import RunConfig
from sdpo.errors import Interrupted
from sdpo.system.streams import lost, make_lasting
from sdpo.system.swallowed import send_again

app = Application(
    help="Stepwise DPO: align a model in steps, each step's model the next step's reference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(finished.app)
app.add_typer(models.app)
app.add_typer(studies.app)
app.add_typer(migrating.app)
app.add_typer(publishing.app)
app.add_typer(batch.app)
app.add_typer(nodes.app, name="node", no_args_is_help=True)
app.add_typer(server.app, name="server", no_args_is_help=True)


@app.command()
def run(
    recipe: Recipe,
    overrides: Overrides = None,
    name: Name = "",
    limit: Limit = 0,
    runs_dir: RunsDir = None,
    prefect: Annotated[bool, typer.Option("--prefect", help="Run as a Prefect flow.")] = False,
    wait: Wait = False,
) -> None:
    """Run a recipe to its last step; what is done already is not done again."""
    from flows.commands.resume import hint
    from flows.commands.run import run_recipe

    config = configured(recipe, overrides, name, limit, runs_dir)
    with hint(config):
        run_recipe(config, console=out, prefect=prefect, wait=wait)


@app.command()
def resume(
    run: Annotated[
        str, typer.Argument(help="Run, by name; or URL/NAME, as a remote store keeps it.")
    ],
    runs_dir: RunsDir = None,
    processes: Annotated[
        int,
        typer.Option("--processes", min=0, help="Processes from here on; 0: as many as it had."),
    ] = 0,
    wait: Wait = False,
) -> None:
    """Go on with a run that stopped, here or on another machine, with the recipe it was made
    from."""
    from flows.commands.resume import resume_kept, resume_run

    if "://" in run:
        folder = runs_folder(runs_dir)
        resume_kept(run, runs_dir=folder, console=out, processes=processes, wait=wait)
    else:
        resume_run(run_folder(run, runs_dir), console=out, processes=processes, wait=wait)


@app.command()
def pull(
    run: Annotated[str, typer.Argument(help="URL/NAME, or the URL of the store.")],
    name: Annotated[str, typer.Argument(help="Name of the run, where the URL has none.")] = "",
    runs_dir: RunsDir = None,
) -> None:
    """Receive a run that a remote store keeps; what is here already is not received again."""
    from flows.commands import resume as commands

    target = f"{run.rstrip('/')}/{name}" if name else run
    commands.pull(target, runs_dir=runs_folder(runs_dir), console=out)


@app.command()
def check(
    recipe: Recipe,
    overrides: Overrides = None,
    limit: Limit = 0,
    runs_dir: RunsDir = None,
    hardware: Annotated[
        str, typer.Option("--hardware", help="Devices to plan for, as 8xH100; need not be here.")
    ] = "",
    machines: Annotated[
        int,
        typer.Option("--nodes", min=1, help="Machines that have the devices of --hardware each."),
    ] = 1,
) -> None:
    """Show before training what a run works with: data, a decoded pair, lengths, steps, memory."""
    from flows.commands.check import check_recipe
    from flows.commands.hardware import hardware_of

    devices = hardware_of(hardware, nodes=machines) if hardware or machines > 1 else None
    config = configured(recipe, overrides, "", limit, runs_dir)
    check_recipe(config, console=out, hardware=devices)


@app.command()
def partition(
    recipe: Recipe,
    overrides: Overrides = None,
    name: Name = "",
    limit: Limit = 0,
    runs_dir: RunsDir = None,
    target: Annotated[
        Path | None, typer.Option("--out", help="Where plan.json goes; else the run's folder.")
    ] = None,
) -> None:
    """Plan which pair goes to which step, without loading a model."""
    from flows.commands.run import plan_recipe

    config = configured(recipe, overrides, name, limit, runs_dir)
    plan_recipe(config, console=out, target=target)


@app.command()
def status(
    run: Annotated[str, typer.Argument(help="Run, by name; else all runs.")] = "",
    runs_dir: RunsDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep looking; at one run until nobody works on it.")
    ] = False,
) -> None:
    """Show where a run is (running, waiting, interrupted, failed, killed, done), or list them."""
    from flows.commands.status import show_status, watch_status

    folder = run_folder(run, runs_dir) if run else None
    show = watch_status if watch else show_status
    show(folder, runs_dir=runs_folder(runs_dir), console=out, as_json=as_json)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Run, by name.")], runs_dir: RunsDir = None
) -> None:
    """Write report.html anew from what is in the run's folder."""
    from flows.commands.run import render

    render(run_folder(run, runs_dir), console=out)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="Run, by name.")],
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="Suite or task: h4, mmlu@5 ...; may be given many times."),
    ] = None,
    win_rate: Annotated[
        bool, typer.Option("--win-rate", help="Compare answers by evaluation.win_rate.judge.")
    ] = False,
    names: Annotated[
        str, typer.Option("--models", help="Models, as M_0,M_2; else all that are complete.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option("--limit", min=0, help="Documents of each task; 0: all.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting: evaluation.key=value.")
    ] = None,
    runs_dir: RunsDir = None,
    wait: Wait = False,
) -> None:
    """Judge models of a run by suites and win rates; what is scored is not again."""
    from flows.commands.evaluate import evaluate as judge

    settings = [*(overrides or []), *([] if limit is None else [f"evaluation.limit={limit}"])]
    judge(
        run_folder(run, runs_dir),
        suites=suite or [],
        win_rate=win_rate,
        models=names,
        overrides=settings,
        wait=wait,
        console=out,
    )


@app.command()
def recipes(
    name: Annotated[str, typer.Argument(help="Preset to print; else all are listed.")] = "",
) -> None:
    """List the recipes that come with the project, or print one: `sdpo recipes NAME > my.yaml`."""
    from flows.commands.run import list_recipes

    if name:
        print(printed(name), end="")
    else:
        list_recipes(console=out)


@app.command()
def plugins() -> None:
    """List what other installed packages add: objectives, partition strategies, data layouts."""
    from flows.commands.plugins import list_plugins

    list_plugins(console=out)


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe."""
    print(json.dumps(RunConfig.model_json_schema(), indent=2))


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    raise Interrupted("terminated")


def _signal_of(error: BaseException) -> int:
    if isinstance(error, Interrupted):
        return signal.SIGTERM
    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else 0


def main() -> None:
    """Run the console script: the command line, with signals handled, and exit with its code."""
    make_lasting()
    signal.signal(signal.SIGTERM, _terminate)
    send_again(_signal_of)
    code = run_app(sys.argv[1:])
    if not code and (why := lost()):
        code = tell("failed", f"standard output was cut short: {os.strerror(why)}", code=1)
    sys.exit(code)


def run_app(arguments: list[str]) -> int:
    """Run the command line and return its exit code; what went wrong is written to stderr.

    Errors that are neither the user's nor of a known kind are raised, with their traceback.
    """
    return exit_code(lambda: _command()(args=arguments, prog_name="sdpo", standalone_mode=False))


@cache
def _command() -> Callable[..., object]:
    """Return all commands, made once of their functions."""
    return get_command(app)


if __name__ == "__main__":
    main()
