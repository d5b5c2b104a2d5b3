"""Define the commands of ``sdpo`` about runs that are done: replay, extend, verify, diff, gc."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.help import Application
from flows.cli.options import Overrides, RunsDir, Step, Target, Wait, out, runs_folder
from sdpo.config.load import check_run_name
from sdpo.errors import ConfigError

app = Application()


@app.command()
def replay(
    target: Target,
    step: Annotated[int | None, typer.Option("--step", help="Step to make again.")] = None,
    overrides: Overrides = None,
    only: Annotated[
        bool, typer.Option("--only", help="This step alone; else the later ones follow.")
    ] = False,
    name: Annotated[str, typer.Option("--name", help="Name of the new run.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and why; do nothing.")
    ] = False,
    runs_dir: RunsDir = None,
    wait: Wait = False,
) -> None:
    """Make a step again in a new run, as it was or with a setting changed, and compare both.

    Exit code 0: bitwise identical, or done with other settings as asked; 1: results differ.
    """
    from flows.commands import finished_runs

    code = finished_runs.replay(
        target,
        step=step,
        overrides=overrides or [],
        only=only,
        name=check_run_name(name) if name else "",
        dry_run=dry_run,
        wait=wait,
        runs_dir=runs_folder(runs_dir),
        console=out,
    )
    raise typer.Exit(code)


@app.command()
def extend(
    run: Annotated[str, typer.Argument(help="Run, by name.")],
    source: Annotated[
        list[str], typer.Option("--source", help="New data: file or hub name; may be repeated.")
    ],
    overrides: Overrides = None,
    name: Annotated[str, typer.Option("--name", help="Name of the new run.")] = "",
    min_new_pairs: Annotated[
        int, typer.Option("--min-new-pairs", min=1, help="Fewer new pairs make no run.")
    ] = 1,
    runs_dir: RunsDir = None,
    wait: Wait = False,
) -> None:
    """Extend a run by one step over pairs that it has not seen, in a new run."""
    from flows.commands import finished_runs

    finished_runs.extend(
        run,
        source,
        overrides=overrides or [],
        name=check_run_name(name) if name else "",
        min_new_pairs=min_new_pairs,
        wait=wait,
        runs_dir=runs_folder(runs_dir),
        console=out,
    )


@app.command()
def verify(
    run: Annotated[str, typer.Argument(help="Run, by name, or an exported model's folder.")],
    runs_dir: RunsDir = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="What a store keeps of it; URL/NAME serves as well.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="With --remote: download every file and hash it.")
    ] = False,
) -> None:
    """Check every file, record and link of a run, or an exported model; exit code 1 where there is
    a fault."""
    from flows.commands import finished_runs

    folder = runs_folder(runs_dir)
    if deep and not remote:
        raise ConfigError("--deep says how --remote looks: give both")
    if remote:
        code = finished_runs.verify_kept(run, runs_dir=folder, deep=deep, console=out)
    else:
        code = finished_runs.verify(run, runs_dir=folder, console=out)
    raise typer.Exit(code)


@app.command()
def diff(
    a: Target,
    b: Target,
    everything: Annotated[bool, typer.Option("--all", help="Also what is the same.")] = False,
    runs_dir: RunsDir = None,
) -> None:
    """Compare two runs, or two steps, side by side."""
    from flows.commands import finished_runs

    finished_runs.diff(a, b, everything=everything, runs_dir=runs_folder(runs_dir), console=out)


@app.command()
def lineage(
    target: Annotated[str, typer.Argument(help="Run, checkpoint, or a model folder anywhere.")],
    step: Step = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    runs_dir: RunsDir = None,
) -> None:
    """Show how a model came to be; exit code 1 where its folder holds something else."""
    from flows.commands import finished_runs

    code = finished_runs.lineage(
        target, step=step, as_json=as_json, runs_dir=runs_folder(runs_dir), console=out
    )
    raise typer.Exit(code)


@app.command()
def gc(
    runs_dir: RunsDir = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="Cache to look at; else that beside the runs."),
    ] = None,
    remote: Annotated[
        str,
        typer.Option(
            "--remote", help="URL of a store, or URL/NAME: what no list there names, nothing here."
        ),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what could go.")] = False,
) -> None:
    """Delete what no run needs: orphaned files, cached rows of no run, old resume states."""
    from flows.commands.clean_up import clean_up, clean_up_store

    if remote:
        clean_up_store(remote, yes=yes, dry_run=dry_run, console=out)
        return
    clean_up(runs_dir=runs_folder(runs_dir), cache=cache, yes=yes, dry_run=dry_run, console=out)
