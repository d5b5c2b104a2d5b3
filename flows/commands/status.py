"""Run ``sdpo status``: print where runs are, even where something in them is damaged."""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, RootModel
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.show.console import Row, table
from flows.show.status import doing, in_detail, in_short
from sdpo.config import describe
from sdpo.config.sampler import EXACT
from sdpo.errors import IntegrityError
from sdpo.stats.kl import KlRow
from sdpo.store.recorded import of_known_form, read_rows
from sdpo.store.records import StepRecord
from sdpo.store.run_file import Origin
from sdpo.store.run_folder import RunFolder, runs_in
from sdpo.store.run_status import RunStatus, read_status
from sdpo.system.streams import visible

_LOOK_S = 2.0
"""So many seconds are between two looks."""

Runs = RootModel[list[RunStatus]]
"""``--json`` prints this of all runs."""


def show_status(
    run: Path | None, *, runs_dir: Path, console: Console, as_json: bool = False
) -> None:
    """Print one run in detail, or a line for each of all; with ``as_json`` as JSON."""
    if run is not None:
        with of_known_form(run):
            folder = RunFolder(run)
            folder.check_there()  # refuses what is no run
            if as_json:
                print(_json(read_status(folder)))
            else:
                _show_run(folder, console)
    elif as_json:
        print(_json(Runs([_readable(it) for it in runs_in(runs_dir)])))
    else:
        found = [_readable(it) for it in runs_in(runs_dir)]
        console.print(_listed(found, runs_dir), soft_wrap=not found)


def watch_status(
    run: Path | None, *, runs_dir: Path, console: Console, as_json: bool = False
) -> None:
    """Look again and again: at one run until nobody works on it, else at all runs for ever.

    A terminal shows what :func:`show_status` prints, kept up to date. Where the output is no
    terminal, or as JSON, a line is printed for each run that has changed.
    """
    runs = [RunFolder(run)] if run is not None else []
    for it in runs:
        it.check_there()
    if console.is_terminal and not as_json:
        _watch_live(runs, runs_dir, console)
        return
    said: dict[str, str] = {}
    for found in _looks(runs, runs_dir):
        for status in found:
            line = status.model_dump_json() if as_json else f"{status.run}: {in_short(status)}"
            if said.get(status.run) != line:
                said[status.run] = line
                print(line if as_json else visible(line), flush=True)


def _looks(runs: list[RunFolder], runs_dir: Path) -> Iterator[list[RunStatus]]:
    """Yield where runs are, again and again: ``runs`` until nobody works on one, else all."""
    while True:
        found = [_readable(it) for it in runs or runs_in(runs_dir)]
        yield found
        if runs and not any(status.works for status in found):
            return
        time.sleep(_LOOK_S)


def _watch_live(runs: list[RunFolder], runs_dir: Path, console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        for found in _looks(runs, runs_dir):
            shown = Group(*map(in_detail, found)) if runs else _listed(found, runs_dir)
            live.update(shown, refresh=True)


def _json(found: BaseModel) -> str:
    return found.model_dump_json(indent=2)


def _readable(run: RunFolder) -> RunStatus:
    """Return where a run is, or why that cannot be told."""
    try:
        with of_known_form(run.path):
            return read_status(run)
    except OSError as error:
        why = f"not readable: {error.strerror}"
    except IntegrityError:
        why = "of a form that is not known"
    return RunStatus(run=run.name, path=str(run.path.absolute()), damaged=(why,))


def _listed(found: list[RunStatus], runs_dir: Path) -> Table | Text:
    if not found:
        return Text(f"no runs in {runs_dir.absolute()}")
    return table(_without_empty([_row(it) for it in found], ("now", "origin", "damaged")))


def _row(status: RunStatus) -> Row:
    return {
        "run": status.run,
        "state": status.state or "?",
        "steps": f"{status.steps} of {status.planned or '?'}" if status.state else "?",
        "now": doing(status),
        "created": status.created or "?",
        "origin": _origin(status.origin),
        "damaged": ", ".join(status.damaged),
    }


def damaged_nodes(run: RunFolder) -> list[str]:
    """Return the nodes of a run whose record is not the one that was written."""
    return [node for node in run.nodes() if run.is_damaged(node)]


def _show_run(run: RunFolder, console: Console) -> None:
    status = read_status(run)
    origin = _origin(status.origin)
    console.print(
        f"[bold]{escape(run.name)}[/], created "
        f"{escape(status.created or '?')}{escape(f', {origin}' if origin else '')}",
        highlight=False,
    )
    rows = [_step_row(run, number) for number in run.complete_steps()]
    if rows:
        console.print(table(_without_empty(rows, ("KL previous", "KL S", "shared from"))))
    console.print(f"{status.steps} of {status.planned or '?'} steps are complete")
    console.print(in_detail(status), soft_wrap=True)
    damaged = damaged_nodes(run)
    if damaged:
        console.print(
            f"[yellow]damaged:[/] the records of {escape(', '.join(damaged))}; "
            f"`sdpo verify {run.name}` says more",
            highlight=False,
            soft_wrap=True,
        )
        run.read_record(damaged[0])  # raises: what is damaged, and an exit code that scripts see


def _without_empty(rows: list[Row], columns: tuple[str, ...]) -> list[Row]:
    empty = {column for column in columns if not any(row.get(column) for row in rows)}
    return [{name: value for name, value in row.items() if name not in empty} for row in rows]


def _origin(origin: Origin | None) -> str:
    if origin is None:
        return ""
    if origin.kind == "arm":
        return f"arm of a study, beside {origin.run}"
    what = "replay of" if origin.kind == "replay" else "extends"
    return f"{what} {origin.run}, step {origin.step}"


def _made_with(run: RunFolder, record: StepRecord) -> dict[str, str]:
    """Return a step's objective, reference and target, and how far its model moved: KL in nats."""
    said = record.models
    cells = {"objective": "sft" if record.kind == "supervised" else describe(record.training)}
    cells |= {role: said[role].name if role in said else "" for role in ("reference", "target")}
    view = run.step(record.step) / "kl.json"
    found = {
        row.against: row.per_sequence["kl"].mean
        for row in read_rows(view, KlRow)
        if row.sampler == EXACT
    }
    for title, against in (("KL previous", record.step - 1), ("KL S", 0)):
        value = found.get(f"M_{against}")
        cells[title] = "" if value is None else f"{value:.3f}"
    return cells


def _step_row(run: RunFolder, number: int) -> Row:
    record = run.step_record(f"step-{number}")
    seconds = sum(record.timings_s.values())
    return {
        "step": number,
        **_made_with(run, record),
        "updates": record.optimizer_steps,
        "seconds": round(seconds, 1),
        "model": record.model[:12],
        "finished": datetime.fromisoformat(record.created).strftime("%Y-%m-%d %H:%M"),
        "shared from": record.shared_from.run if record.shared_from else "",
    }
