"""Give the report's numbers as scalars by model, and its words as Markdown, for trackers."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdpo.identity.canonical import digest_of
from sdpo.report.evaluations import Line, load_evaluations
from sdpo.report.load import RunData, load_run
from sdpo.report.numbers import Numbers, measure_run
from sdpo.report.summary import Summary
from sdpo.report.tables import Table
from sdpo.report.win_rates import load_win_rates
from sdpo.stats.gamma_rows import Difference, GammaRow
from sdpo.store.win_rates import Won

_NAMELESS = ("model", "probe", "whole", "quantiles", "complete", "vs_previous", "vs_S")
_SAFE = re.compile(r"[A-Za-z0-9_.-]+")
Scalars = dict[str, float]


@dataclass(slots=True)
class _Board:
    """A board collects scalars by model number; what cannot be had is left out."""

    of_models: dict[int, Scalars] = field(default_factory=dict)

    def put(self, model: int, place: str, values: Mapping[str, float | None]) -> None:
        known = {f"{place}/{name}": float(v) for name, v in values.items() if v is not None}
        self.of_models.setdefault(model, {}).update(known)


def tracked_scalars(run: Path) -> dict[int, Scalars]:
    """Return what was measured of every model of the run in folder ``run``, by model number t.

    Names are ``gamma/<probe>/<number>`` (``gamma/reserve``: of all sources together) and
    ``gamma_ref/D_t/<number>`` (nats, shares), ``gap/...`` (nats; see
    :class:`~sdpo.stats.gamma_rows.Contamination`), ``kl/<model>/<sampler>/<estimator>`` (nats per
    completion), ``eval/<task>/<metric>`` and ``win_rate/<judge>/over_<model>``; ``_low`` and
    ``_high`` are bounds of 95% intervals. Names have letters that every tracker takes.

    Raises:
        UserError: there is no run at ``run``.
        IntegrityError: a record or a probe is damaged.
    """
    data, board = load_run(run), _Board()
    _gamma(board, measure_run(data))
    _kl(board, data)
    _evaluations(board, load_evaluations(data.folder))
    _win_rates(board, load_win_rates(data.folder))
    return dict(sorted(board.of_models.items()))


def markdown(summary: Summary) -> str:
    """Return verdict, caveats and tables of a report in Markdown."""
    verdict = summary.verdict
    parts = [f"**{verdict.headline}**", *verdict.sentences]
    parts += [f"- {caveat.text}" for caveat in summary.caveats]
    parts += [_table(table) for table in (*summary.tables, *summary.evaluations) if table.rows]
    return "\n\n".join(parts)


def _gamma(board: _Board, numbers: Numbers) -> None:
    for (model, probe), row in numbers.entries.items():
        reserve, _, source = probe.partition(":")
        place = f"{reserve}/{_name(source)}" if source else probe
        board.put(model, f"gamma/{place}", _flat(row))
    for model, row in numbers.reserve.items():
        board.put(model, "gamma/reserve", _flat(row))
    for step, reference in numbers.references.items():
        told = {"mean": reference.mean, "ranking_accuracy": reference.ranking_accuracy}
        board.put(step, f"gamma_ref/D_{step}", {**told, "pairs": reference.pairs})
    for when, gaps in (("before_training", numbers.before), ("after_training", numbers.after)):
        for step, gap in gaps.items():
            told = {"gap": gap.gap, "gap_low": gap.low, "gap_high": gap.high}
            board.put(step, f"gap/{when}", told)


def _flat(row: GammaRow) -> dict[str, float | None]:
    named = row.model_dump(exclude=set(_NAMELESS))
    return (
        named
        | {f"quantile_{name}": value for name, value in row.quantiles.items()}
        | dict(_change("previous", row.vs_previous))
        | dict(_change("S", row.vs_S))
    )


def _change(since: str, found: Difference | None) -> Iterator[tuple[str, float | None]]:
    if found:
        yield f"change_from_{since}", found.mean
        yield f"change_from_{since}_low", found.low
        yield f"change_from_{since}_high", found.high


def _kl(board: _Board, data: RunData) -> None:
    for model, rows in data.kl.items():
        for row in rows:
            place = f"kl/{_name(row.against)}/{_name(row.sampler)}"
            for name, found in row.per_sequence.items():
                told = {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
                board.put(model, place, told)


def _evaluations(board: _Board, lines: list[Line]) -> None:
    taken: set[str] = set()
    for line in lines:
        place = f"eval/{_name(line.name)}"
        if f"{place}/{line.metric}" in taken:  # the same task, asked in another way
            place += f"-{digest_of(line.settings)[:6]}"
        taken.add(f"{place}/{line.metric}")
        for score in line.scores:
            metric, told = _name(line.metric), {_name(line.metric): score.value}
            for since, found in (("previous", score.change), ("S", score.from_start)):
                if found:
                    mean, low, high = (found.change.mean, found.change.low, found.change.high)
                    change = f"{metric}_change_from_{since}"
                    told |= {change: mean, f"{change}_low": low, f"{change}_high": high}
            board.put(score.model, place, told)


def _win_rates(board: _Board, won: list[Won]) -> None:
    for each in won:
        found, verdicts = each.found, each.verdicts
        place = f"win_rate/{_name(verdicts.outputs.judge)}/over_M_{verdicts.other}"
        asked = {w.verdicts.outputs.asked for w in won if _same_pair(w, each)}
        if len(asked) > 1:
            place += f"-{verdicts.outputs.asked}"
        (low, high), (controlled_low, controlled_high) = found.bounds, found.controlled_bounds
        told = {"rate": found.rate, "rate_low": low, "rate_high": high, "ties": found.ties}
        told |= {
            "controlled": found.controlled,
            "controlled_low": controlled_low,
            "controlled_high": controlled_high,
            "prompts": found.prompts,
        }
        board.put(verdicts.model, place, told)


def _same_pair(one: Won, other: Won) -> bool:
    mine, theirs = one.verdicts, other.verdicts
    return (mine.model, mine.other, _name(mine.outputs.judge)) == (
        theirs.model,
        theirs.other,
        _name(theirs.outputs.judge),
    )


def _name(text: str) -> str:
    """Return a name in letters that every tracker takes; two texts keep two names."""
    if _SAFE.fullmatch(text):
        return text
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', text).strip('-')}-{digest_of(text)[:4]}"


def _table(table: Table) -> str:
    rows = [table.columns, ("---",) * len(table.columns), *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return f"### {table.title}\n\n" + "\n".join(lines)
