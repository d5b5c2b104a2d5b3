"""Define what is known of evaluations: the tasks of suites, and what a model scored on one.

Two kinds of files are in the cache. ``suites/<key>.json`` says which tasks the names in a recipe
stand for, with the digests that their results depend on. ``evaluations/<key>/`` holds what one
model scored on one task: ``scores.parquet`` by document, ``summary.json``, and ``key.json``, which
is written last and has the identity and the digests of the other two.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from sdpo.errors import Fault, IntegrityError
from sdpo.identity.canonical import digest_of
from sdpo.system.files import (
    file_digest,
    json_of,
    read_json,
    read_sealed,
    seal,
    write_json,
    write_text,
)
from sdpo.system.json_values import JsonObject

SCORES = "scores.parquet"
SUMMARY = "summary.json"
KEY_FILE = "key.json"
RESPONSES = "responses.jsonl"
"""The answers to requests of a task that is not done: with them it goes on where it was.

Those of other processes than the first have its number in their names."""
METRIC = "metric:"
"""The column of a metric in ``scores.parquet`` begins so."""


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskFacts(_Told):
    """A task is known by these; ``config``, ``data`` and ``functions`` are digests.

    ``data`` covers the documents that are evaluated and those that examples are drawn from,
    ``functions`` the source files of every function that the task's configuration names.
    ``metric`` is the one that stands for the task; ``better`` says of each metric whether more is
    better. ``documents``: how many are evaluated.
    """

    name: str
    version: str
    config: str
    data: str
    functions: str
    kind: str
    shots: int
    documents: int
    metric: str
    better: dict[str, bool]

    def identity(self) -> dict[str, JsonValue]:
        """Return what of them a result depends on."""
        shown = ("name", "version", "config", "data", "functions", "shots", "documents")
        return {name: getattr(self, name) for name in shown}


class GroupFacts(_Told):
    """A group of tasks has one number: their mean, by documents where ``weighted``."""

    name: str
    tasks: list[str]
    metric: str
    weighted: bool


class SuiteFacts(_Told):
    """A suite has the mean of its members, which are tasks and groups."""

    name: str
    members: list[str]


class Suites(_Told):
    """The names in a recipe stand for these; ``files``: digests of what was read, by path."""

    tasks: list[TaskFacts]
    groups: list[GroupFacts] = []
    suites: list[SuiteFacts] = []
    files: dict[str, str] = {}

    def changed(self) -> str:
        """Return the first file that is not as it was read; empty: none."""
        for name, digest in self.files.items():
            path = Path(name)
            if not path.is_file() or file_digest(path) != digest:
                return name
        return ""


class Summary(_Told):
    """A model scored so on a task.

    ``metrics`` are the task's own aggregates by ``metric,filter``, None where one is not finite;
    ``truncated`` of the ``requests`` were longer than the model's context, and cut on the left.
    """

    task: str
    metrics: dict[str, float | None]
    documents: int
    requests: int
    truncated: int
    documents_truncated: int


def suites_path(cache: Path, asked: JsonObject) -> Path:
    """Return where it is kept which tasks are meant by what is asked."""
    return cache / "suites" / f"{digest_of(asked)[:32]}.json"


def read_suites(path: Path) -> Suites | None:
    """Return what a file says of suites; None where it is not there, or not as it was written."""
    try:
        content = read_sealed(path)
        return Suites.model_validate(json_of(content, path)) if content else None
    except (OSError, IntegrityError, ValidationError):
        return None


def write_suites(path: Path, suites: Suites) -> None:
    """Write it, with its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, suites.model_dump_json(indent=1))
    seal(path)


def evaluation_folder(cache: Path, identity: JsonObject) -> Path:
    """Return the folder of what a model scores on a task."""
    return cache / "evaluations" / digest_of(identity)[:32]


def responses_in(folder: Path) -> list[Path]:
    """Return the files of answers in the folder of a task that is not done."""
    return sorted(folder.glob("responses*.jsonl"))


def finish(folder: Path, identity: JsonObject) -> None:
    """Say that the scores in ``folder`` are complete."""
    files = {name: file_digest(folder / name) for name in (SCORES, SUMMARY)}
    write_json(folder / KEY_FILE, {"identity": identity, "files": files})
    for path in responses_in(folder):
        path.unlink(missing_ok=True)


def evaluation_fault(folder: Path) -> str:
    """Return what is wrong with a cached evaluation; empty: nothing."""
    if not (folder / KEY_FILE).is_file():
        return "not evaluated yet"
    try:
        content = read_json(folder / KEY_FILE)
        if digest_of(content["identity"])[:32] != folder.name:
            return f"{KEY_FILE} was changed"
        for name in (SCORES, SUMMARY):
            if file_digest(folder / name) != content["files"][name]:
                return f"{name} was changed"
    except (Fault, OSError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read ({error})"
    return ""


def read_summary(folder: Path) -> Summary:
    """Return the summary of an evaluation.

    Raises:
        IntegrityError: it has another form.
    """
    try:
        return Summary.model_validate(read_json(folder / SUMMARY))
    except ValidationError as error:
        raise IntegrityError(f"{folder / SUMMARY} is no summary of an evaluation") from error


def finite(value: float) -> float | None:
    """Return a number that JSON can hold, or None."""
    return float(value) if math.isfinite(value) else None


def aggregate(values: Sequence[float], sizes: Sequence[int], *, weighted: bool) -> float:
    """Return the mean of tasks, by their documents where ``weighted``."""
    weights = sizes if weighted else [1] * len(values)
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def by_metric(metrics: Mapping[str, float | None], metric: str) -> float | None:
    """Return an aggregate by the name of its metric, with the first of its filters."""
    for key, value in metrics.items():
        if key.partition(",")[0] == metric or key == metric:
            return value
    return None
