"""Keep what came of each trial in small files, so that another machine can go on from them.

A part is one trial: a whole chain from S. ``NAME.json`` has its numbers, ``NAME.parquet`` a row for
each measured pair: gamma under every model, and the log-probs of both sides under S. A part that is
there is never run again, though the folder in which it was made is gone.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from sdpo.errors import IntegrityError
from sdpo.report.evaluations import load_evaluations
from sdpo.report.load import RunData, load_run
from sdpo.report.win_rates import load_win_rates
from sdpo.stats.contamination import contamination
from sdpo.stats.differences import RESAMPLES
from sdpo.stats.gamma import RESERVE
from sdpo.stats.gamma_rows import Contamination
from sdpo.store.run_folder import RunFolder
from sdpo.study.folder import StudyFolder
from sdpo.study.results import PairValues, TrialResult, keep
from sdpo.system.files import publish_file, write_json

_SIDES = ("chosen_logps", "rejected_logps", "chosen_tokens", "rejected_tokens")


class Win(BaseModel):
    """The answers of M_``model`` won at this rate over those of M_``other``, ties as half."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: int
    other: int
    judge: str
    rate: float
    low: float | None
    high: float | None
    prompts: int


class Suite(BaseModel):
    """M_``model`` has this value on a task, and this paired difference from S, by document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    metric: str
    model: int
    documents: int
    value: float | None
    change: float | None
    low: float | None
    high: float | None


class Part(BaseModel):
    """A part says what came of a trial.

    ``losses``: of every optimizer step, by step; ``gaps``: how much more each M_{t-1} moved from S
    on D_t than on the reserve; ``versions``: of what computed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    result: TrialResult
    losses: dict[int, list[float]]
    gaps: list[Contamination]
    wins: list[Win] = []
    suites: list[Suite] = []
    versions: dict[str, str]


class PartFiles:
    """These are the files of parts in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def numbers(self, trial: str) -> Path:
        """Return the file of a part's numbers."""
        return self.folder / f"{trial}.json"

    def pairs(self, trial: str) -> Path:
        """Return the table of a part's pairs."""
        return self.folder / f"{trial}.parquet"

    def is_there(self, trial: str) -> bool:
        """Return whether a part is there."""
        return self.numbers(trial).is_file() and self.pairs(trial).is_file()

    def read(self, trial: str) -> tuple[Part, pa.Table]:
        """Return a part.

        Raises:
            IntegrityError: it cannot be read.
        """
        try:
            part = Part.model_validate_json(self.numbers(trial).read_bytes())
            return part, pq.read_table(self.pairs(trial))
        except (ValidationError, pa.ArrowInvalid, OSError) as error:
            raise IntegrityError(
                f"part {trial} in {self.folder} cannot be read ({error}): take it from the "
                "history, or delete both of its files, and it is run again"
            ) from error

    def write(self, trial: str, part: Part, table: pa.Table) -> None:
        """Write a part; its numbers come last, so that a part with numbers is whole."""
        with publish_file(self.pairs(trial)) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        write_json(self.numbers(trial), part.model_dump(mode="json"))


def part_of(run: RunFolder, result: TrialResult) -> tuple[Part, pa.Table]:
    """Return what is kept of a trial's finished run; no path of this machine is in it.

    Raises:
        UserError: there is no run.
        IntegrityError: a record is damaged.
    """
    data = load_run(run.path)
    seed = int(data.config["probe"]["seed"])
    gaps = (
        contamination(data.probes, step=t, model=t - 1, resamples=RESAMPLES, seed=seed)
        for t in data.records
        if t
    )
    return (
        Part(
            result=result.model_copy(update={"run": ""}),
            losses={
                step: [row["loss"] for row in rows if "loss" in row]
                for step, rows in data.metrics.items()
                if rows
            },
            gaps=[gap for gap in gaps if gap is not None],
            wins=_wins(run),
            suites=_suites(run),
            versions=data.run.versions,
        ),
        pair_table(data),
    )


def _wins(run: RunFolder) -> list[Win]:
    return [
        Win(
            model=won.verdicts.model,
            other=won.verdicts.other,
            judge=won.verdicts.outputs.judge,
            rate=won.found.rate,
            low=won.found.bounds[0],
            high=won.found.bounds[1],
            prompts=won.found.prompts,
        )
        for won in load_win_rates(run)
    ]


def _suites(run: RunFolder) -> list[Suite]:
    found = []
    for line in load_evaluations(run):
        for score in line.scores:
            change = score.from_start.change if score.from_start else None
            found.append(
                Suite(
                    name=line.name,
                    metric=line.metric,
                    model=score.model,
                    documents=score.documents,
                    value=score.value,
                    change=change.mean if change else None,
                    low=change.low if change else None,
                    high=change.high if change else None,
                )
            )
    return found


def pair_table(data: RunData) -> pa.Table:
    """Return gamma of every measured pair under M_0 .. M_T, by probe and pair id.

    Columns ``gamma_0`` .. ``gamma_T`` are float64, in nats; ``chosen_logps`` and the like are those
    under S.
    """
    order = [("probe", "ascending"), ("pair_id", "ascending")]
    tables = [data.probes[f"M_{t}"].sort_by(order) for t in range(data.measured + 1)]
    start = tables[0]
    keys = ("probe", "pair_id", "prompt_key", "source")
    columns = {name: start[name].cast(pa.string()).dictionary_encode() for name in keys}
    for t, table in enumerate(tables):
        assert table["pair_id"].to_pylist() == start["pair_id"].to_pylist()
        gamma = table["chosen_logps"].to_numpy() - table["rejected_logps"].to_numpy()
        columns[f"gamma_{t}"] = pa.array(gamma)
    return pa.table({**columns, **{name: start[name] for name in _SIDES}})


def reserve_values(table: pa.Table) -> PairValues:
    """Return gamma of the reserved pairs of a part under S and under its last model."""
    rows = rows_of(table, RESERVE)
    rows = rows.take(pa.array(np.argsort(np.asarray(rows["pair_id"].to_pylist(), dtype=np.str_))))
    last = max(name for name in table.column_names if name.startswith("gamma_"))
    return PairValues(
        np.asarray(rows["pair_id"].to_pylist(), dtype=np.str_),
        np.asarray(rows["prompt_key"].to_pylist(), dtype=np.str_),
        rows["gamma_0"].to_numpy(),
        rows[last].to_numpy(),
    )


def rows_of(table: pa.Table, probe: str) -> pa.Table:
    """Return the rows of the probe ``probe``, or of all whose name begins so."""
    names = table["probe"].to_pylist()
    is_prefix = probe.endswith(":")
    return table.filter(
        pa.array([name.startswith(probe) if is_prefix else name == probe for name in names])
    )


def restore(files: PartFiles, trial: str, study: StudyFolder) -> None:
    """Put what is kept of a part where a study looks for the results of its trial."""
    part, table = files.read(trial)
    result = part.result.model_copy(update={"run": str(study.run(trial).path)})
    keep(study, result, reserve_values(table))
