"""Run the commands `compare` and `sweep`: what they would take, how it goes, what came of it."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager

from rich.console import Console
from rich.markup import escape

from flows.commands.resume import noted
from flows.commands.study import foresee_study
from flows.show.console import RunConsole, table
from sdpo.config import RunConfig
from sdpo.hooks import Host
from sdpo.report.findings import Verdict
from sdpo.report.tables import Table
from sdpo.study.arms import Trial, placed
from sdpo.study.before import check_trials
from sdpo.study.compare import Keep, check_plan, keeps_models, plan_comparison, run_comparison
from sdpo.study.conclusions import conclude
from sdpo.study.folder import StudyFolder
from sdpo.study.run_trials import Failed, failures
from sdpo.study.side_by_side import check_side_by_side
from sdpo.study.sweep import plan_sweep
from sdpo.study.sweep_page import conclude_sweep, sweep_tables
from sdpo.study.sweeping import planned_sweep
from sdpo.study.tables import comparison_tables


def compare_arms(
    config: RunConfig,
    *,
    arms: str,
    own: Sequence[str],
    seeds: int,
    partition_seeds: bool,
    name: str,
    keep: Keep,
    side_by_side: int,
    dry_run: bool,
    as_json: bool,
    wait: bool,
    console: Console,
    progress: Console,
) -> int:
    """Compare arms of a recipe and print the comparison; return 1 where an arm failed, else 0.

    ``progress``: where it is shown how the runs go.

    Raises:
        UserError: an arm cannot be, or nothing can be compared.
    """
    plan = plan_comparison(
        config,
        names=arms,
        own=own,
        seeds=seeds,
        partition_seeds=partition_seeds,
        name=name,
    )
    if dry_run:
        check_plan(plan, keep=keep, side_by_side=side_by_side)
        foresee_study(
            plan.study,
            plan.trials,
            keeps_models=keeps_models(keep),
            at_once=side_by_side,
            console=console,
        )
        return 0
    with going_on(plan.study, "sdpo compare"), RunConsole(progress) as listen:
        compared = run_comparison(
            plan, keep=keep, host=Host(listen=listen), wait=wait, side_by_side=side_by_side
        )
    if as_json:
        print(json.dumps(compared.found.as_json(), indent=2))
    else:
        _tell_ran(compared.ran, console)
        tables, verdict = comparison_tables(compared.found), conclude(compared.found)
        print_study(tables, verdict, plan.study, console=console)
    return _tell_failed(compared.failed, plan.study, progress)


def sweep_settings(
    config: RunConfig,
    *,
    over: Sequence[str],
    trials: int,
    seeds: int,
    prune: bool,
    name: str,
    keep: Keep,
    side_by_side: int,
    dry_run: bool,
    as_json: bool,
    wait: bool,
    console: Console,
    progress: Console,
) -> int:
    """Sweep settings of a recipe and print what came of it; return 1 where a trial failed, else 0.

    Raises:
        UserError: a setting cannot be swept so, or nothing can be compared.
    """
    study, run = planned_sweep(
        config,
        over=over,
        trials=trials,
        seeds=seeds,
        prune=prune,
        name=name,
        keep=keep,
        wait=wait,
        side_by_side=side_by_side,
    )
    if dry_run:
        _foresee_sweep(
            study,
            config,
            over=over,
            trials=trials,
            seeds=seeds,
            keep=keep,
            at_once=side_by_side,
            console=console,
        )
        return 0
    with going_on(study, "sdpo sweep"), RunConsole(progress) as listen:
        done = run(Host(listen=listen))
    if as_json:
        print(json.dumps(done.swept.as_json(), indent=2))
    else:
        _tell_ran(done.ran, console)
        print_study(sweep_tables(done.swept), conclude_sweep(done.swept), study, console=console)
        console.print(f"recipe: {escape(str(done.recipe))}", highlight=False, soft_wrap=True)
    return _tell_failed(done.failed, study, progress)


def _foresee_sweep(
    study: StudyFolder,
    config: RunConfig,
    *,
    over: Sequence[str],
    trials: int,
    seeds: int,
    keep: Keep,
    at_once: int,
    console: Console,
) -> None:
    """Print what a sweep would take; of a search what one trial takes, of which the rest are like
    it."""
    keeps = keeps_models(keep)
    if not trials:
        planned = plan_sweep(config, over=over, seeds=seeds, name=study.name).trials
        check_side_by_side(planned, at_once)
        check_trials(study, planned, keeps_models=keeps, at_once=at_once)
        foresee_study(study, planned, keeps_models=keeps, at_once=at_once, console=console)
        return
    one = [
        Trial(
            arm="a trial",
            name="a-trial",
            seed=config.training.seed,
            config=placed(config, name="a-trial", folder=study.path),
        )
    ]
    check_trials(study, one, keeps_models=keeps, more=trials - 1)
    foresee_study(study, one, keeps_models=keeps, console=console)
    console.print(f"that is one trial, with the recipe's own settings, of {trials}")


def _tell_ran(ran: Sequence[str], console: Console) -> None:
    if not ran:
        console.print("every run is complete: nothing to run", highlight=False)


def _tell_failed(failed: Sequence[Failed], study: StudyFolder, console: Console) -> int:
    if not failed:
        return 0
    said = escape(failures(failed, study))
    console.print(f"[red]failed:[/] {said}", highlight=False, soft_wrap=True)
    return 1


def print_study(
    tables: Sequence[Table], verdict: Verdict, study: StudyFolder, *, console: Console
) -> None:
    """Print tables, a verdict and where the page of a study is."""
    console.print()
    for part in tables:
        rows = [dict(zip(part.columns, row, strict=True)) for row in part.rows]
        console.print(table(rows, title=part.title, numeric=part.columns[part.text_columns :]))
    console.print(f"[bold]{escape(verdict.headline)}[/]", highlight=False)
    for sentence in verdict.sentences:
        console.print(f"  {escape(sentence)}", highlight=False)
    console.print(f"page: {escape(str(study.page))}", highlight=False, soft_wrap=True)


def going_on(study: StudyFolder, command: str) -> AbstractContextManager[None]:
    """Say how to go on where something stops a study, unless that is the user's mistake.

    Raises:
        Interrupted: in place of a KeyboardInterrupt, which prints no notes.
    """
    return noted(lambda: f"the same `{command}` goes on with study {study.name}")
