"""Make the rows of tables that the command line prints and the Prefect UI shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.show.console import Cell, Row
from sdpo.promotion.judge import Judgement
from sdpo.store.plan_file import read_plan
from sdpo.store.run_folder import RunFolder


def partition_rows(run: Path) -> list[Row]:
    """Return a row per step: pairs, those of each source, tokens of prompt + longer completion."""
    return [
        {
            "step": step.step,
            "pairs": step.pairs,
            "sources": ", ".join(f"{name} {count}" for name, count in step.sources.items()),
            "tokens median": round(step.lengths.sequence.median),
            "tokens p95": round(step.lengths.sequence.p95),
            "tokens max": step.lengths.sequence.maximum,
        }
        for step in read_plan(RunFolder(run)).steps
        if step.lengths.sequence
    ]


def judgement_rows(judgement: Judgement) -> list[Row]:
    """Return a row per part of the reserve: the current and the new model against S, on its pairs.

    A row has each one's accuracy against S, its margin and the change of both, with intervals.
    """
    return [_judgement_row(entry, judgement) for entry in judgement.comparisons]


def _judgement_row(entry: Mapping[str, Any], judgement: Judgement) -> Row:
    row: dict[str, Cell] = {"reserve": entry["scope"], "pairs": entry["pairs"]}
    names = {"current": f"M_{judgement.current}", "new": f"M_{judgement.new}"}
    for number, title in (("accuracy_vs_S", "accuracy vs S"), ("margin", "margin")):
        for group in ("current", "new"):
            row[f"{names[group]} {title}"] = _with_interval(entry[group][number])
        row[f"{title} change"] = _with_interval(entry["difference"][number])
    return row


def _with_interval(number: Mapping[str, float | None]) -> str:
    if number["low"] is None:
        return f"{number['estimate']:.3f}"
    return f"{number['estimate']:.3f} [{number['low']:.3f}, {number['high']:.3f}]"
