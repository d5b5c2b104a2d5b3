"""Show a run to a program: steps, numbers as Arrow tables, models, the report.

Nothing is kept in memory: every call reads the run's folder, which may have gone on meanwhile, and
refuses files that are not what their records say.
"""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from sdpo.config import RunConfig, describe
from sdpo.errors import UserError
from sdpo.history.results import Comparison, compare_step
from sdpo.history.target import locate_run
from sdpo.inputs.locate import model_folder
from sdpo.inputs.resolve import cache_dir
from sdpo.report.load import RunData, load_run
from sdpo.report.numbers import measure_run
from sdpo.report.summary import summarise
from sdpo.report.tables import Table, reserve_table
from sdpo.report.tables_of_steps import steps_table
from sdpo.stats.gamma import RESERVE
from sdpo.stats.gamma_rows import GammaRow
from sdpo.store.origin import origin_chain
from sdpo.store.plan_file import PlannedStep
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import read_stored
from sdpo.system.json_values import Json
from sdpo.system.streams import visible

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MEASURED = pa.schema(
    [
        ("pairs", pa.int64()),
        ("prompts", pa.int64()),
        ("mean", pa.float64()),
        ("mean_low", pa.float64()),
        ("mean_high", pa.float64()),
        ("sd", pa.float64()),
        ("se", pa.float64()),
        ("ranking_accuracy", pa.float64()),
        ("ranking_accuracy_low", pa.float64()),
        ("ranking_accuracy_high", pa.float64()),
        ("accuracy_vs_previous", pa.float64()),
        ("accuracy_vs_S", pa.float64()),
        ("change_from_S", pa.float64()),
        ("change_from_S_low", pa.float64()),
        ("change_from_S_high", pa.float64()),
        ("per_token_mean", pa.float64()),
        ("truncated_share", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a run's plan. ``objective`` with its settings; ``reference`` and ``target`` by
    name (``S``, ``M_1``); ``model`` is the digest of M_t, empty as long as the step is not done."""

    step: int
    pairs: int
    sources: Mapping[str, int]
    objective: str
    reference: str
    target: str
    is_complete: bool
    model: str


@dataclass(frozen=True, slots=True)
class Report:
    """A run's report: ``path`` of the file; in a notebook it is shown in a frame of its own."""

    path: Path

    @property
    def html(self) -> str:
        """Return the whole page as HTML."""
        return self.path.read_text(encoding="utf-8")

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" sandbox="" width="100%" height="800" '
            'style="border:0"></iframe>'
        )


class Run:
    """A run, finished or not, by its name in ``runs_dir`` or by its folder.

    Raises:
        UserError: there is no such run.
    """

    def __init__(self, run: "str | Path | Run", *, runs_dir: str | Path = "runs") -> None:
        self._folder: RunFolder = _folder_of(run, Path(runs_dir))

    @property
    def name(self) -> str:
        """Return the run's name."""
        return self._folder.name

    @property
    def path(self) -> Path:
        """Return its folder as an absolute path."""
        return self._folder.path.absolute()

    @property
    def config(self) -> RunConfig:
        """Return the resolved recipe, from which the run was made."""
        return read_stored(self._folder).config

    @property
    def steps(self) -> tuple[Step, ...]:
        """Return the steps of the plan in order; none before the run is partitioned."""
        data = load_run(self.path)
        sizes = data.sizes
        return tuple(_step(data, step, pairs=sizes[step.step]) for step in data.steps)

    def gamma(self) -> pa.Table:
        """Return mean gamma and accuracies of every model on every reserve and partition.

        gamma(x) = log M(chosen|x) - log M(rejected|x) in nats (sDPO, arXiv 2403.19270, section
        3.2), on the reserve of every source and on the sample of every partition. Columns:
        ``model`` (M_t's t; 0 is S), ``probe`` (``reserve:<source>`` or ``D_<step>``), ``pairs``,
        ``prompts``, ``mean``, ``sd``, ``se``, ``ranking_accuracy`` (share with gamma > 0),
        ``accuracy_vs_previous`` and ``accuracy_vs_S`` (share whose gamma rose, ties one half),
        ``change_from_S`` (mean, in nats, on the pairs of both), ``per_token_mean``,
        ``truncated_share``. ``_low`` and ``_high`` are 95% intervals, prompts resampled. Null:
        cannot be had.
        """
        entries = measure_run(load_run(self.path)).entries
        named = pa.schema([("model", pa.int64()), ("probe", pa.string()), *_MEASURED])
        rows = [
            {"model": model, "probe": probe, **_flat(entry)}
            for (model, probe), entry in sorted(entries.items())
        ]
        return pa.Table.from_pylist(rows, schema=named)

    def reserve(self) -> pa.Table:
        """Return every model's numbers on the reserved pairs, which no step trained on.

        Columns as of :meth:`gamma`, with ``source`` in the place of ``probe``: null for the
        reserves of all sources together, the report's numbers, which come first.
        """
        numbers = measure_run(load_run(self.path))
        named = pa.schema([("model", pa.int64()), ("source", pa.string()), *_MEASURED])
        rows: list[dict[str, Json]] = [
            {"model": model, "source": None, **_flat(entry)}
            for model, entry in sorted(numbers.reserve.items())
        ]
        rows += [
            {"model": model, "source": probe.removeprefix(RESERVE), **_flat(entry)}
            for (model, probe), entry in sorted(numbers.entries.items())
            if probe.startswith(RESERVE)
        ]
        return pa.Table.from_pylist(rows, schema=named)

    def metrics(self) -> pa.Table:
        """Return the training curves of all steps: a row for each line of ``metrics.jsonl``.

        Columns: ``step`` (t; 0 is the supervised stage), ``optimizer_step`` (within it), then the
        names in the files, which are TRL's (``loss``, ``rewards/margins``, ``eval_...`` on the
        reserve, ...), float64, null where a line has no such number.
        """
        lines = [
            {"step": step, "optimizer_step": line["step"]}
            | {name: float(value) for name, value in line.items() if name != "step"}
            for step, of_step in sorted(load_run(self.path).metrics.items())
            for line in of_step
        ]
        names = dict.fromkeys(name for line in lines for name in line)
        rest = [name for name in names if name not in ("step", "optimizer_step")]
        schema = pa.schema(
            [
                ("step", pa.int64()),
                ("optimizer_step", pa.int64()),
                *((name, pa.float64()) for name in rest),
            ]
        )
        return pa.Table.from_pylist(lines, schema=schema)

    def model(self, step: int) -> "PreTrainedModel":
        """Load M_step as transformers does, fp32, for evaluation, without dropout; M_0 is S.

        torch is loaded here. The files are digested while they are loaded, and compared with what
        the run recorded.

        Raises:
            UserError: the step is not complete, or a model's folder does not hold that model.
        """
        folder, digest = self._model(step)
        from sdpo.model.policy import load_policy  # torch: two seconds that nothing else needs

        return load_policy(folder, model=self.config.model, digest=digest).eval()

    def report(self) -> Report:
        """Return the report, which a notebook shows and which is a file elsewhere.

        Raises:
            UserError: the run has not come so far.
        """
        if not self._folder.report.is_file():
            raise UserError(
                f"run {self.name} has no report yet: it is made at the end (sdpo.resume goes on)"
            )
        return Report(self._folder.report.absolute())

    def comparison(self) -> Comparison | None:
        """Return how the step that a replay made again compares with the origin's; else None.

        Raises:
            UserError: the origin is not where it was.
        """
        origin = read_stored(self._folder).origin
        if origin is None or origin.kind != "replay":
            return None
        chain, missing = origin_chain(self._folder, origin)
        if not chain:
            raise UserError("; ".join(missing))
        return compare_step(chain[0], self._folder, origin.step)

    def __repr__(self) -> str:
        done = len([step for step in self.steps if step.is_complete])
        return f"<Run {self.name}: {done} of {len(self.steps)} steps, in {self.path}>"

    def _repr_html_(self) -> str:
        data = load_run(self.path)
        numbers = measure_run(data)
        tables = [steps_table(data, numbers), reserve_table(data, numbers)]
        found = summarise(self.path).verdict.headline if data.measured >= 0 else ""
        return "".join(
            [
                f"<p><b>run {_text(self.name)}</b>: {data.done} of {len(data.steps)} steps. "
                f"{_text(found)}</p>",
                *map(_html_table, tables),
            ]
        )

    def _model(self, step: int) -> tuple[Path, str]:
        """Return folder and digest of M_step."""
        stored = read_stored(self._folder)
        if step == 0 and not stored.config.supervised.enabled:
            base = model_folder(stored.config.model, cache=cache_dir(stored.config))
            return base, stored.inputs["model"]
        record = self._folder.find_step(f"step-{step}")
        if record is None:
            done = ", ".join(map(str, self._folder.complete_steps())) or "none"
            raise UserError(f"run {self.name} has no complete step {step}; complete: {done}")
        return self._folder.model(step).absolute(), record.model


def _folder_of(run: str | Path | Run, runs_dir: Path) -> RunFolder:
    if isinstance(run, Run):
        return RunFolder(run.path)
    # A path is meant as one, also where it has a single part.
    target = str(Path(run).absolute()) if isinstance(run, Path) else run
    folder = locate_run(target, runs_dir=runs_dir)
    folder.check_there()
    return folder


def _step(data: RunData, planned: PlannedStep, *, pairs: int) -> Step:
    number = planned.step
    record = data.records.get(number)
    return Step(
        step=number,
        pairs=pairs,
        sources=planned.sources,
        objective=describe(data.training(number)),
        reference=data.model_name(number, "reference"),
        target=data.model_name(number, "target"),
        is_complete=record is not None,
        model=record.model if record else "",
    )


def _flat(row: GammaRow) -> dict[str, Json]:
    start = row.vs_S
    change = {
        "change_from_S": start and start.mean,
        "change_from_S_low": start and start.low,
        "change_from_S_high": start and start.high,
    }
    return {name: getattr(row, name) for name in _MEASURED.names if name not in change} | change


def _html_table(table: Table) -> str:
    head = _row("th", table.columns)
    body = "".join(_row("td", row) for row in table.rows)
    return f"<table><caption>{_text(table.title)}</caption>{head}{body}</table>"


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"


def _text(value: str) -> str:
    return html.escape(visible(value))
