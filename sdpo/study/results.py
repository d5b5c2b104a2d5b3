"""Keep what a comparison needs of each trial: numbers, and gamma of every reserved pair.

They are read from the trial's run once it is complete, and stay when the run goes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from sdpo.config import RunConfig, describe
from sdpo.config.sampler import EXACT
from sdpo.errors import Fault, IntegrityError, UserError
from sdpo.identity.canonical import digest_of
from sdpo.identity.payloads import changed_settings
from sdpo.report.evaluations import load_evaluations
from sdpo.report.load import RunData, load_run
from sdpo.stats.bootstrap import Floats
from sdpo.stats.gamma import whole_reserve
from sdpo.stats.kl import Estimate
from sdpo.store.records import StepRecord, first_fault
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import read_stored
from sdpo.study.folder import StudyFolder
from sdpo.study.scores import ItemScores, item_scores, scores_of_table, scores_table
from sdpo.system.files import publish_file, read_json, write_json
from sdpo.system.privacy import withheld_by_folder, withholding


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StepResult(_Kept):
    """A step of a trial trained on ``pairs`` pairs in ``seconds``.

    ``reference`` and ``model`` are digests. ``shared_from``: the trial that trained it, where it
    was another one. ``is_scored``: log-probs of the reference had to be computed for this trial.
    """

    step: int
    pairs: int
    objective: str
    reference: str
    model: str
    shared_from: str = ""
    seconds: float
    is_scored: bool = False


class SuiteScore(_Kept):
    """The trial's model scored ``value`` on a task or suite, asked in one way."""

    name: str
    metric: str
    asked: str
    value: float | None


class TrialResult(_Kept):
    """A trial came to this.

    ``identity`` is that of its run, ``judged_by`` the digest of how its model was to be judged
    (empty: not at all). ``rows_scored``: log-probs of so many pairs were computed for
    it, those of its measurements included. ``compare_on``: which reserved pairs may compare its
    model. ``kl``: KL(M_T||S) in nats per completion; None where it
    was not measured. ``characters``: mean length of its greedy completions of ``prompts`` prompts.
    """

    trial: str
    arm: str
    seed: int | None
    run: str
    identity: dict[str, JsonValue]
    judged_by: str = ""
    strategy: str
    start: str
    steps: list[StepResult]
    rows_scored: int
    compare_on: Literal["all", "report"] = "all"
    kl: Estimate | None = None
    prompts: int = 0
    characters: float | None = None
    suites: list[SuiteScore] = []

    @property
    def model(self) -> str:
        """Return the digest of the last step's model."""
        return self.steps[-1].model

    @property
    def seconds(self) -> float:
        """Return the seconds that all its steps took, those of shared steps included."""
        return sum(step.seconds for step in self.steps)


@dataclass(frozen=True, slots=True, eq=False)
class PairValues:
    """A trial has gamma of its reserved pairs, ``[n]`` in nats, under S and under its last model.

    Rows are sorted by ``pair_id`` ``[n]``. ``scores``: what suites and a judge said of that model.
    """

    pair_id: NDArray[np.str_]
    prompt_key: NDArray[np.str_]
    start: Floats
    gamma: Floats
    scores: Sequence[ItemScores] = ()

    def at(self, pairs: NDArray[np.str_]) -> "PairValues":
        """Return the rows of these ``pairs``, all of which are there."""
        rows = np.searchsorted(self.pair_id, pairs)
        return replace(
            self,
            pair_id=self.pair_id[rows],
            prompt_key=self.prompt_key[rows],
            start=self.start[rows],
            gamma=self.gamma[rows],
        )

    def table(self) -> pa.Table:
        """Return the values as a table."""
        return pa.table(
            {
                "pair_id": pa.array(self.pair_id.tolist(), pa.string()),
                "prompt_key": pa.array(self.prompt_key.tolist(), pa.string()),
                "gamma_S": self.start,
                "gamma": self.gamma,
            }
        )

    @classmethod
    def of_table(cls, table: pa.Table) -> "PairValues":
        """Return the values of a table that :meth:`table` made."""
        return cls(
            np.asarray(table["pair_id"].to_pylist(), dtype=np.str_),
            np.asarray(table["prompt_key"].to_pylist(), dtype=np.str_),
            table["gamma_S"].to_numpy(),
            table["gamma"].to_numpy(),
        )


def pair_values(data: RunData, model: int) -> PairValues:
    """Return gamma of the reserved pairs of a run under M_``model`` and under S.

    Raises:
        UserError: the run has no reserve.
        Fault: the model was not measured on the pairs that S was.
    """
    start, last = (whole_reserve(data.probes[f"M_{number}"]) for number in (0, model))
    if start is None or last is None:
        raise UserError(
            f"run {data.folder.name} has no reserve, so nothing can be compared: set data.reserve"
        )
    if not np.array_equal(start.pair_id, last.pair_id):
        raise Fault(f"M_{model} of run {data.folder.name} was measured on other pairs than S")
    return PairValues(last.pair_id, last.prompt_key, start.gamma, last.gamma)


def read_trial(
    run: RunFolder,
    *,
    trial: str,
    arm: str,
    seed: int | None,
    scored: Mapping[str, int],
) -> tuple[TrialResult, PairValues]:
    """Return what came of a run.

    ``scored``: rows that were scored meanwhile, by the digest of the model.

    Raises:
        UserError: there is no run, it is not complete, or it has no reserve.
        IntegrityError: a record or a probe is damaged.
    """
    data = load_run(run.path)
    last = len(data.steps)
    if not last or data.done < last or data.measured < last:
        raise UserError(
            f"run {run.name} is not complete ({data.done} of {last or '?'} steps): "
            f"sdpo resume {run.name}, then compare again"
        )
    config = read_stored(run).config
    own = {_start(data)} | {digest for r in data.records.values() for digest in _models(r)}
    scored = {model: rows for model, rows in scored.items() if model in own}
    steps = [
        StepResult(
            step=step.step,
            pairs=data.sizes[step.step],
            objective=describe(data.training(step.step)),
            reference=record.inputs.get("reference", ""),
            model=record.model,
            shared_from=record.shared_from.run if record.shared_from else "",
            seconds=sum(record.timings_s.values()),
            is_scored=not record.shared_from
            and scored.get(record.inputs.get("reference", ""), 0) > 0,
        )
        for step in data.steps
        for record in [data.records[step.step]]
    ]
    written = [len(item["completion"]) for item in data.completions.get(f"M_{last}", [])]
    return (
        TrialResult(
            trial=trial,
            arm=arm,
            seed=seed,
            run=str(run.path),
            identity=data.run.identity,
            judged_by=judged_by(config),
            strategy=data.plan.strategy if data.plan else "",
            start=_start(data),
            steps=steps,
            rows_scored=sum(scored.values()),
            compare_on=config.data.reserve.compare_on,
            kl=_kl(data, last),
            prompts=len(written),
            characters=float(np.mean(written)) if written else None,
            suites=_suites(run, last),
        ),
        replace(pair_values(data, last), scores=item_scores(run, model=last)),
    )


def judged_by(config: RunConfig) -> str:
    """Return the digest of how models are judged afterwards; empty where they are not."""
    asked = config.evaluation
    if not asked.suites and not asked.win_rate.is_on:
        return ""
    win_rate = changed_settings(asked.win_rate)
    judge = asked.win_rate.judge.model_dump(include={"reward_model", "reward_revision"})
    suites = asked.model_dump(mode="json", exclude={"every", "win_rate"})
    return digest_of({**suites, "win_rate": win_rate, "judge": judge})


def _models(record: StepRecord) -> set[str]:
    return {record.model, record.inputs.get("reference", ""), record.inputs.get("target", "")}


def _start(data: RunData) -> str:
    return data.records[0].model if 0 in data.records else data.run.inputs["model"]


def _kl(data: RunData, last: int) -> Estimate | None:
    rows = (row for row in data.kl.get(last, []) if (row.against, row.sampler) == ("M_0", EXACT))
    return next((row.per_sequence["kl"] for row in rows), None)


def _suites(run: RunFolder, last: int) -> list[SuiteScore]:
    return [
        SuiteScore(
            name=line.name,
            metric=line.metric if line.better else f"{line.metric} (less is better)",
            asked=line.settings or "all documents",
            value=score.value,
        )
        for line in load_evaluations(run)
        for score in line.scores
        if score.model == last
    ]


def keep(study: StudyFolder, result: TrialResult, values: PairValues) -> None:
    """Write what came of a trial into the study's folder."""
    with withholding(withheld_by_folder(Path(result.run))):
        with publish_file(study.values(result.trial)) as temporary:
            pq.write_table(values.table(), temporary)
        with publish_file(study.scores(result.trial)) as temporary:
            pq.write_table(scores_table(values.scores), temporary)
        write_json(study.result(result.trial), result.model_dump(mode="json"))


def kept(study: StudyFolder, trial: str) -> tuple[TrialResult, PairValues] | None:
    """Return what came of a trial; None before that is known.

    Raises:
        IntegrityError: it cannot be read.
    """
    path = study.result(trial)
    if not path.is_file() or not study.values(trial).is_file():
        return None
    try:
        result = TrialResult.model_validate(read_json(path))
        values = PairValues.of_table(pq.read_table(study.values(trial)))
        if (scores := study.scores(trial)).is_file():
            values = replace(values, scores=scores_of_table(pq.read_table(scores)))
    except (ValidationError, pa.ArrowInvalid, KeyError) as error:
        why = first_fault(error) if isinstance(error, ValidationError) else str(error)
        raise IntegrityError(
            f"the results of trial {trial} in {path.parent} cannot be read ({why}): delete "
            f"{path.name} there, and they are read from its run again"
        ) from error
    return result, values
