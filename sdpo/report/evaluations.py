"""Show what every model scored on suites, and how it differs from the one before and from S."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sdpo.report.findings import FEWEST_PAIRS
from sdpo.report.tables import UNKNOWN, Table, count, interval, model_name, number
from sdpo.stats.paired import Difference, Part, Scores, numbered, paired
from sdpo.store.evaluated import Evaluation, read_evaluations
from sdpo.store.evaluations import METRIC
from sdpo.store.run_folder import RunFolder

RESAMPLES = 2000
SEED = 42


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An evaluation counts with ``weight`` in a line; ``key`` is its ``metric,filter``."""

    evaluation: Evaluation
    key: str
    weight: float

    @property
    def value(self) -> float | None:
        """Return the task's own aggregate."""
        return self.evaluation.summary.metrics[self.key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A model has a number on a line: a task's, or the weighted mean of several.

    ``change`` and ``from_start``: its paired differences from the model before it and from S.
    """

    model: int
    value: float | None
    members: tuple[Member, ...]
    change: Difference | None = None
    from_start: Difference | None = None

    @property
    def documents(self) -> int:
        """Return how many documents the model was asked, those of all tasks together."""
        return sum(member.evaluation.summary.documents for member in self.members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line is a task, a group or a suite, asked in one way, with the scores of models.

    ``better``: whether more is better.
    """

    name: str
    metric: str
    shots: str
    settings: str
    better: bool
    scores: tuple[Score, ...]


def load_evaluations(run: RunFolder) -> list[Line]:
    """Return the lines of a run: suites first, then their members, then other tasks.

    Raises:
        IntegrityError: scores are not those that were written.
    """
    evaluations = read_evaluations(run)
    boards: dict[str, list[Evaluation]] = {}
    for each in evaluations:
        boards.setdefault(_settings(each), []).append(each)
    return [line for settings, board in boards.items() for line in _lines(settings, board)]


def _settings(evaluation: Evaluation) -> str:
    """Return in words how a task was asked, where that is not by default."""
    asked = evaluation.asked
    said = [
        *([f"first {asked.limit} documents"] if asked.limit else []),
        *(["chat template"] if asked.chat_template else []),
        *([f"batches of {asked.batch_size}"] if asked.batch_size > 1 else []),
    ]
    return ", ".join(said)


def _lines(settings: str, board: Sequence[Evaluation]) -> Iterator[Line]:
    """Yield the lines of evaluations that were asked with the same settings."""
    latest: dict[str, dict[int, Evaluation]] = {}
    commons: dict[str, str] = {each.facts.name: each.common for each in board}
    for each in board:
        if each.common == commons[each.facts.name]:
            latest.setdefault(each.facts.name, {})[each.model] = each
    suites = {suite.name: suite for each in board for suite in each.suites}
    groups = {group.name: group for each in board for group in each.groups}
    in_groups = {task for group in groups.values() for task in group.tasks}
    kinds: dict[str, list[str]] = {
        name: [task for member in suite.members for task in _tasks(member, groups)]
        for name, suite in suites.items()
    }
    for name, suite in suites.items():
        weights = _of_suite(suite.members, groups)
        yield _line(name, settings, kinds[name], latest, weights)
    for name, group in groups.items():
        yield _line(name, settings, group.tasks, latest, _of_suite([name], groups))
    for name in latest:
        if name not in in_groups:
            yield _line(name, settings, [name], latest, _of_suite([name], groups))


def _tasks(name: str, groups: Mapping[str, Any]) -> list[str]:
    return groups[name].tasks if name in groups else [name]


Weights = Mapping[str, tuple[float, str, str]]
"""By task: its weight, the metric that counts of it (empty: its own), and the group by whose
documents the weight is still to be shared out (empty: by none)."""


def _of_suite(members: Sequence[str], groups: Mapping[str, Any]) -> Weights:
    found: dict[str, tuple[float, str, str]] = {}
    for member in members:
        share = 1 / len(members)
        if member in groups:
            group = groups[member]
            for task in group.tasks:
                weight = share if group.weighted else share / len(group.tasks)
                found[task] = (weight, group.metric, member if group.weighted else "")
        else:
            found[member] = (share, "", "")
    return found


def _line(
    name: str,
    settings: str,
    tasks: Sequence[str],
    latest: Mapping[str, Mapping[int, Evaluation]],
    weights: Weights,
) -> Line:
    """Return the line of ``tasks`` together, with the models that were evaluated on all of them."""
    models = sorted(set.intersection(*(set(latest.get(task, {})) for task in tasks)))
    scores: list[Score] = []
    for model in models:
        members = _members([latest[task][model] for task in tasks], weights)
        values = [member.value for member in members]
        total = (
            sum(m.weight * v for m, v in zip(members, values, strict=True) if v is not None)
            if None not in values
            else None
        )
        before = [score for score in scores if score.model == model - 1]
        start = [score for score in scores if score.model == 0]
        scores.append(
            Score(
                model=model,
                value=total,
                members=members,
                change=_difference(members, before[0].members) if before else None,
                from_start=_difference(members, start[0].members) if start else None,
            )
        )
    first = [found for task in tasks for found in latest.get(task, {}).values()]
    metrics = {_metric(found, weights) for found in first}
    shots = sorted({found.facts.shots for found in first})
    return Line(
        name=name,
        metric=metrics.pop() if len(metrics) == 1 else "mean",
        shots=f"{shots[0]}" if len(shots) == 1 else f"{shots[0]} to {shots[-1]}",
        settings=settings,
        better=all(found.facts.better[_metric(found, weights)] for found in first),
        scores=tuple(scores),
    )


def _metric(evaluation: Evaluation, weights: Weights) -> str:
    return weights[evaluation.facts.name][1] or evaluation.facts.metric


def _members(evaluations: Sequence[Evaluation], weights: Weights) -> tuple[Member, ...]:
    """Return evaluations with the weight of each, which is by documents in some groups."""
    documents: dict[str, int] = {}
    for each in evaluations:
        group = weights[each.facts.name][2]
        documents[group] = documents.get(group, 0) + each.summary.documents
    members = []
    for each in evaluations:
        weight, _, group = weights[each.facts.name]
        if group:
            weight *= each.summary.documents / documents[group]
        metric = _metric(each, weights)
        key = next(k for k in each.summary.metrics if k.partition(",")[0] == metric)
        members.append(Member(evaluation=each, key=key, weight=weight))
    return tuple(members)


def difference_of(now: Score, before: Score) -> Difference | None:
    """Return how two models' scores on a line differ; None where its number is no mean."""
    return _difference(now.members, before.members)


def scored_documents(score: Score) -> Scores | None:
    """Return a model's values by document, scaled so that their mean is its number on the line.

    None where that is no mean over documents.
    """
    found = [(member, _scores(member)) for member in score.members]
    known = [(member, scores) for member, scores in found if scores is not None]
    if len(known) < len(found):
        return None
    total = sum(len(scores.values) for _, scores in known)
    tasks = [member.evaluation.facts.name for member, _ in known]
    keys = [
        f"{task}:{key}"
        for task, (_, scores) in zip(tasks, known, strict=True)
        for key in scores.keys.tolist()
    ]
    values = [
        scores.values * (member.weight * total / len(scores.values)) for member, scores in known
    ]
    return Scores(np.array(keys, dtype=np.str_), np.concatenate(values))


def _difference(now: Sequence[Member], before: Sequence[Member]) -> Difference | None:
    parts = []
    for mine, theirs in zip(now, before, strict=True):
        scores = [_scores(member) for member in (mine, theirs)]
        if scores[0] is None or scores[1] is None:
            return None
        parts.append(Part(mine.weight, scores[0], scores[1]))
    return paired(parts, resamples=RESAMPLES, seed=SEED)


def _scores(member: Member) -> Scores | None:
    """Return the scores by document; None where the task's number is not their mean."""
    metric, _, name = member.key.partition(",")
    table = pq.read_table(member.evaluation.table)
    if f"{METRIC}{metric}" not in table.column_names:
        return None
    rows = table.filter(pc.equal(table["filter"], name))
    values = rows[f"{METRIC}{metric}"].to_numpy(zero_copy_only=False).astype(np.float64)
    value = member.value
    if value is None or not len(values) or abs(float(values.mean()) - value) > 1e-9:
        return None
    hashes = zip(rows["doc_hash"].to_pylist(), rows["prompt_hash"].to_pylist(), strict=True)
    return Scores(numbered([f"{document}:{prompt}" for document, prompt in hashes]), values)


def evaluation_tables(lines: Sequence[Line]) -> list[Table]:
    """Return the table of all lines; none where nothing was evaluated."""
    rows = [_row(line, score) for line in lines for score in line.scores]
    if not rows:
        return []
    table = Table(
        title="Suites",
        columns=(
            "Task",
            "Metric",
            "Asked",
            "Model",
            "Examples",
            "Documents",
            "Score",
            "From the model before",
            "From S",
            "Cut",
        ),
        rows=tuple(rows),
        text_columns=4,
        note="By lm-evaluation-harness. Differences are paired, document by document, with 95% "
        "intervals that resample documents. Cut: documents with a request that is longer than the "
        "model's context, whose beginning was left out: their scores are not those of the task.",
    )
    return [table]


def _row(line: Line, score: Score) -> tuple[str, ...]:
    summaries = [member.evaluation.summary for member in score.members]
    return (
        line.name,
        line.metric if line.better else f"{line.metric} (less is better)",
        line.settings or "all documents",
        model_name(score.model),
        line.shots,
        count(score.documents),
        number(score.value, digits=4),
        _shown(score.change),
        _shown(score.from_start),
        count(sum(summary.documents_truncated for summary in summaries)),
    )


def _shown(found: Difference | None) -> str:
    if found is None:
        return UNKNOWN
    change = found.change
    alone = f", {found.alone} documents apart" if found.alone else ""
    few = found.documents < FEWEST_PAIRS
    low, high = (None, None) if few else (change.low, change.high)
    bounds = interval(low, high, digits=4)
    return f"{number(change.mean, digits=4, signed=True)} {bounds}{alone}"
