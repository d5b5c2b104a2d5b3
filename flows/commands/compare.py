"""Run the command `compare`: what it would take, how it goes, what came of it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from flows.commands.study import foresee_study
from flows.show.console import RunConsole, table
from partitions import PartitionError
from sdpo.config import RunConfig
from sdpo.errors import Interrupted, UserError
from sdpo.hooks import Host
from sdpo.report.findings import Verdict
from sdpo.report.tables import Table
from sdpo.study.compare import Compared, Keep, check_plan, plan_comparison, run_comparison
from sdpo.study.conclusions import conclude
from sdpo.study.folder import StudyFolder
from sdpo.study.run_trials import failures
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
    dry_run: bool,
    as_json: bool,
    wait: bool,
    console: Console,
) -> int:
    """Compare arms of a recipe and print the comparison; return 1 where an arm failed, else 0.

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
        check_plan(plan, keep=keep)
        foresee_study(plan.study, plan.trials, keeps_models=keep == "models", console=console)
        return 0
    shown = Console(stderr=True) if as_json else console
    with going_on(plan.study, "sdpo compare"), RunConsole(shown) as listen:
        compared = run_comparison(plan, keep=keep, host=Host(listen=listen), wait=wait)
    if as_json:
        print(json.dumps(compared.found.as_json(), indent=2))
    else:
        print_comparison(compared, console=console)
    if compared.failed:
        shown.print(
            f"[red]failed:[/] {escape(failures(compared.failed, plan.study))}",
            highlight=False,
            soft_wrap=True,
        )
    return 1 if compared.failed else 0


def print_comparison(compared: Compared, *, console: Console) -> None:
    """Print the tables of a comparison, what follows from them, and where the page is."""
    if not compared.ran:
        console.print("every arm is complete: nothing to run", highlight=False)
    print_study(
        comparison_tables(compared.found),
        conclude(compared.found),
        compared.study,
        console=console,
    )


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


@contextmanager
def going_on(study: StudyFolder, command: str) -> Iterator[None]:
    """Say how to go on where something stops a study, unless that is the user's mistake.

    Raises:
        Interrupted: in place of a KeyboardInterrupt, which prints no notes.
    """
    how = f"the same `{command}` goes on with study {study.name}"
    try:
        yield
    except (UserError, PartitionError):
        raise
    except KeyboardInterrupt:
        stopped = Interrupted("interrupted")
        stopped.add_note(how)
        raise stopped from None
    except Exception as error:
        error.add_note(how)
        raise
