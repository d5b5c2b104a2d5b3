"""``sdpo status``: how far runs are, also where something in them is damaged."""

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.show.console import Cell, Row, table
from sdpo.config import describe
from sdpo.config.sampler import EXACT
from sdpo.errors import IntegrityError, SdpoError
from sdpo.store.recorded import of_known_form
from sdpo.store.records import PlanOutputs, StepRecord
from sdpo.store.run_folder import RunFolder, runs_in
from sdpo.system.files import read_json
from sdpo.system.json_values import JsonObject

_STEP = re.compile(r"step-[1-9]\d*")


def show_status(run: Path | None, *, runs_dir: Path, console: Console) -> None:
    """One run in detail, or a line for each."""
    if run is not None:
        with of_known_form(run):
            _show_run(RunFolder(run), console)
        return
    rows = [_row(run) for run in runs_in(runs_dir)]
    if not rows:
        console.print(f"no runs in {escape(str(runs_dir.absolute()))}", soft_wrap=True)
        return
    console.print(table(_without_empty(rows, ("origin", "damaged"))))


def _row(run: RunFolder) -> Row:
    names = ("created", "steps", "report", "origin", "damaged")
    row: dict[str, Cell] = {"run": run.name, **dict.fromkeys(names, "")}
    try:
        with of_known_form(run.path):
            return row | _summary(run)
    except OSError as error:
        return row | {"created": "?", "steps": "?", "damaged": f"not readable: {error.strerror}"}
    except IntegrityError:
        return row | {"created": "?", "steps": "?", "damaged": "of a form that is not known"}


def _summary(run: RunFolder) -> dict[str, Cell]:
    seals = run.seals()
    damaged = [node for node, whole in seals.items() if whole is False]
    done = [node for node, whole in seals.items() if whole and _STEP.fullmatch(node)]
    content, unreadable = _head(run)
    return {
        "created": str(content.get("created", "?")),
        "steps": f"{len(done)} of {_planned_steps(run) or '?'}",
        "report": "yes" if run.report.is_file() else "",
        "origin": _origin(content),
        "damaged": ", ".join([*unreadable, *damaged]),
    }


def _head(run: RunFolder) -> tuple[JsonObject, list[str]]:
    """What run.yaml says, and its name where it cannot be read."""
    try:
        return run.read_head("created", "origin"), []
    except SdpoError:
        return {}, ["run.yaml"]


def damaged_nodes(run: RunFolder) -> list[str]:
    """Nodes of a run whose record is not the one that was written."""
    return [node for node in run.nodes() if run.is_damaged(node)]


def _show_run(run: RunFolder, console: Console) -> None:
    content = run.read_run()
    origin = _origin(content)
    console.print(
        f"[bold]{escape(str(content.get('name', run.name)))}[/], created "
        f"{escape(str(content.get('created', '?')))}{escape(f', {origin}' if origin else '')}",
        highlight=False,
    )
    done = run.complete_steps()
    rows = [_step_row(run, number) for number in done]
    if rows:
        console.print(table(_without_empty(rows, ("KL previous", "KL S", "shared from"))))
    planned = _planned_steps(run)
    console.print(f"{sum(step > 0 for step in done)} of {planned or '?'} steps are complete")
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


def _origin(content: JsonObject) -> str:
    origin = content.get("origin")
    if not isinstance(origin, Mapping):
        return ""
    what = "replay of" if origin.get("kind") == "replay" else "extends"
    return f"{what} {origin.get('run')}, step {origin.get('step')}"


def _planned_steps(run: RunFolder) -> int:
    try:
        plan = run.find("plan")
    except IntegrityError:
        return 0
    return plan.read_outputs(PlanOutputs).steps if plan else 0


def _made_with(run: RunFolder, record: StepRecord) -> dict[str, str]:
    """Objective, reference and target of a step, and how far its model moved."""
    said = record.models
    row = {"objective": "sft" if record.kind == "supervised" else describe(record.training)}
    row |= {role: said[role].name if role in said else "" for role in ("reference", "target")}
    view = run.step(record.step) / "kl.json"
    entries = read_json(view) if view.is_file() else []
    found = {
        entry["against"]: entry["per_sequence"]["kl"]["mean"]
        for entry in entries
        if entry["sampler"] == EXACT
    }
    for title, against in (("KL previous", record.step - 1), ("KL S", 0)):
        value = found.get(f"M_{against}")
        row[title] = "" if value is None else f"{value:.3f}"
    return row


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
