"""What `sdpo evaluate` does and prints."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.show.console import RunConsole, table
from sdpo.history.evaluate import evaluate_run
from sdpo.hooks import Host
from sdpo.report.evaluations import evaluation_tables, load_evaluations
from sdpo.report.win_rates import load_win_rates, win_rate_tables
from sdpo.store.run_folder import RunFolder


def evaluate(
    run: Path,
    *,
    suites: Sequence[str],
    win_rate: bool,
    models: str,
    overrides: Sequence[str],
    wait: bool,
    console: Console,
) -> None:
    """Judge models of a run by suites or win rates, then print all that is known of its scores."""
    named = [name.strip() for name in models.split(",") if name.strip()]
    folder = RunFolder(run.absolute())
    with RunConsole(console) as listen:
        done = evaluate_run(
            folder,
            suites=suites,
            win_rate=win_rate,
            models=named,
            overrides=overrides,
            host=Host(listen=listen),
            wait=wait,
        )
    if not done.executed or set(done.executed) <= {"report", "trackers"}:
        text = f"{', '.join(done.models)} of run {folder.name}: everything is evaluated already"
        console.print(escape(text), highlight=False)
    print_evaluations(folder, console=console)
    console.print(f"report: {escape(str(folder.report))}", highlight=False, soft_wrap=True)


def print_evaluations(run: RunFolder, *, console: Console) -> None:
    """Print the scores of a run's models, and their differences."""
    tables = [*evaluation_tables(load_evaluations(run)), *win_rate_tables(load_win_rates(run))]
    for part in tables:
        rows = [dict(zip(part.columns, row, strict=True)) for row in part.rows]
        console.print(table(rows, title=part.title, numeric=part.columns[part.text_columns :]))
