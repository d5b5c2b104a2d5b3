"""Compare two runs, or two steps: configuration, data, environment, metrics, gamma."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sdpo.data.readers import numbered
from sdpo.errors import UserError
from sdpo.history.changed_pairs import ChangedField, ChangedPairs, changed_pairs
from sdpo.history.results import metrics_of
from sdpo.history.target import Checkpoint
from sdpo.stats.gamma_rows import GammaRow
from sdpo.store.plan_file import read_plan
from sdpo.store.recorded import check_recorded, read_rows, whole_steps
from sdpo.store.records import DataOutputs, StepRecord
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import Stored, read_stored
from sdpo.system.json_values import Json
from sdpo.system.words import counted, noun

Flat = dict[str, Json]

_GAMMA = ("pairs", "mean", "se", "ranking_accuracy", "accuracy_vs_S", "accuracy_vs_previous")
_MOST_PAIRS = 5
"""So many pairs of a source are shown with what differs in them."""
_FACTS = ("pairs", "examples", "optimizer_steps")
_TRAINED = ("loss", "rewards/accuracies", "rewards/margins", "grad_norm")


@dataclass(frozen=True, slots=True)
class Row:
    """A row shows one field on both sides; None where a side does not have it."""

    name: str
    a: Json
    b: Json

    @property
    def differs(self) -> bool:
        """Return whether the sides differ."""
        return bool(self.a != self.b)


@dataclass(frozen=True, slots=True)
class Section:
    """A section is a list of rows under a title."""

    title: str
    rows: tuple[Row, ...]

    def differing(self) -> "Section":
        """Return the section with only the rows that differ."""
        return Section(self.title, tuple(row for row in self.rows if row.differs))


def compare(a: Checkpoint, b: Checkpoint) -> list[Section]:
    """Return both sides, section by section; where a side names a step, only that pair of steps.

    Raises:
        UserError: a run is not there, or a step is not complete.
        IntegrityError: what would be compared is not what a run wrote.
    """
    left, right = (read_stored(side.run) for side in (a, b))
    sections = [
        Section("Configuration", _rows(_configuration(left), _configuration(right))),
        Section("Data", _rows(_data(a.run, left), _data(b.run, right))),
        *_changed(a.run, b.run, left, right),
    ]
    pairs, work = _steps(a, b), []
    for one, other in pairs:
        sides = (a.run.find_step(f"step-{one}"), b.run.find_step(f"step-{other}"))
        where = f"step {one}" if one == other else f"step {one} and step {other}"
        for title, view in (
            ("Settings of", _settings),
            ("Environment of", _environment),
            ("Inputs and outputs of", _links),
        ):
            sections.append(Section(f"{title} {where}", _rows(*map(view, sides))))
        metrics = (_metrics(a.run, one, sides[0]), _metrics(b.run, other, sides[1]))
        sections.append(Section(f"Metrics of {where}", _rows(*metrics)))
        work.append(Section(f"Work of {where}", _rows(*map(_work, sides))))
        gammas = (_gamma(a.run, one), _gamma(b.run, other))
        names = f"M_{one}" if one == other else f"M_{one} and M_{other}"
        sections.append(Section(f"Gamma of {names}, in nats", _rows(*gammas)))
    # Last: it differs between any two runs, and says nothing of what came of them.
    return [*sections, *work]


def _changed(a: RunFolder, b: RunFolder, left: Stored, right: Stored) -> Iterator[Section]:
    """Yield a section on the pairs of each source whose data is other data in the other run."""
    for source in right.config.data.given:
        digests = [stored.inputs.get(f"data.{source.name}") for stored in (left, right)]
        if None in digests or digests[0] == digests[1] or not all(map(_has_pairs, (a, b))):
            continue
        found = changed_pairs(a, b, source.name, most=_MOST_PAIRS)
        title = f"Pairs of {source.name}"
        if found.count:
            title += f": {found.count} of {counted(found.of, 'pair')} {_differ(found)}"
        yield Section(
            title, tuple(Row(_told(field, source.path), field.a, field.b) for field in found.shown)
        )


def _has_pairs(run: RunFolder) -> bool:
    return check_recorded(run, "data", run.pairs) and check_recorded(run, "plan", run.plan)


def _differ(found: ChangedPairs) -> str:
    counts = {"added": found.added, "removed": found.removed, "changed": found.changed}
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    first = f", the first {_MOST_PAIRS}" if found.count > _MOST_PAIRS else ""
    return f"{noun(found.count, 'differs', 'differ')} ({kinds}){first}"


def _told(field: ChangedField, path: str) -> str:
    where = f"{numbered(path, field.row)}, {field.name}"
    if field.steps:
        return f"{where}; step {' and '.join(map(str, field.steps))}"
    return f"{where}; {'reserved: ' if field.is_reserved else ''}no step trained on it"


def _steps(a: Checkpoint, b: Checkpoint) -> list[tuple[int, int]]:
    if a.step is None and b.step is None:
        return [(n, n) for n in sorted({*whole_steps(a.run), *whole_steps(b.run)})]
    named = [step for step in (a.step, b.step) if step is not None]
    one, other = named[0], named[-1]
    for side, number in ((a.run, one), (b.run, other)):
        if side.read_record(f"step-{number}") is None:
            listed = ", ".join(map(str, side.complete_steps())) or "none"
            raise UserError(f"run {side.name} has no complete step {number}; complete: {listed}")
    return [(one, other)]


def _rows(a: Flat, b: Flat) -> tuple[Row, ...]:
    return tuple(Row(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b]))


def flat(value: Json, prefix: str = "") -> Flat:
    """Return the leaves of nested mappings and lists by their dotted path."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        items = [(str(item.get("name") or i), item) for i, item in enumerate(value)]
    else:
        return {prefix: value}
    found: Flat = {}
    for key, item in items:
        found |= flat(item, f"{prefix}.{key}" if prefix else key)
    return found


def _configuration(stored: Stored) -> Flat:
    settings = stored.config.model_dump(exclude={"name", "store"})
    return {key: value for key, value in flat(settings).items() if value is not None}


def _data(run: RunFolder, stored: Stored) -> Flat:
    found: Flat = {f"{name} digest": digest[:16] for name, digest in stored.inputs.items()}
    data = run.find("data")
    for source in data.read_outputs(DataOutputs).sources if data else ():
        found[f"{source.name}: pairs kept"] = source.kept
    if not check_recorded(run, "plan", run.plan_file):
        return found
    plan = read_plan(run)
    for name, count in plan.reserve.items():
        found[f"{name}: reserved"] = count
    for step in plan.steps:
        found[f"D_{step.step}: pairs"] = step.pairs
        found[f"D_{step.step}: digest"] = step.digest[:16]
    return found


def _settings(record: StepRecord | None) -> Flat:
    return flat(record.training) if record else {}


def _environment(record: StepRecord | None) -> Flat:
    return flat(record.environment) if record else {}


def _links(record: StepRecord | None) -> Flat:
    if record is None:
        return {}
    digests = record.inputs | {"model published": record.model}
    return {name: str(digest)[:16] for name, digest in digests.items()}


def _metrics(run: RunFolder, number: int, record: StepRecord | None) -> Flat:
    if record is None:
        return {}
    found: Flat = record.model_dump(include=set(_FACTS), exclude_unset=True)
    path = run.step(number) / "metrics.jsonl"
    check_recorded(run, f"step-{number}", path)
    lines = metrics_of(path)
    trained = [line for line in lines if "loss" in line]
    if trained:
        found["first loss"] = _rounded(trained[0]["loss"])
        found |= {f"last {k}": _rounded(trained[-1][k]) for k in _TRAINED if k in trained[-1]}
    for line in lines:
        found |= {name: _rounded(value) for name, value in line.items() if "eval_" in name}
    return found


def _work(record: StepRecord | None) -> Flat:
    if record is None:
        return {}
    return {
        "rows scored": record.scored_rows.computed if record.scored_rows else None,
        "seconds": round(sum(record.timings_s.values()), 1),
    }


def _gamma(run: RunFolder, number: int) -> Flat:
    path = run.step(number) / "gamma.json"
    if not check_recorded(run, f"gamma-{number}", path):
        return {}
    return {
        f"{row.probe}: {name}": _rounded(getattr(row, name))
        for row in read_rows(path, GammaRow)
        if row.model == f"M_{number}"
        for name in _GAMMA
    }


def _rounded(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.6g}")
