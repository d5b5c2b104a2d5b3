"""Compare arms on the reserved pairs that all of them were measured on, each with the first.

Ranking accuracy and gamma are compared pair by pair, suites document by document, win rates over S
prompt by prompt; a difference is called shown where its
p-value, corrected by Holm for all that are tested, is below 5%, and its intervals, over pairs and
where there are several seeds over seeds, leave out 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue

from sdpo.errors import UserError
from sdpo.report.findings import FEWEST_PAIRS
from sdpo.stats.bootstrap import Floats, intervals
from sdpo.stats.differences import (
    ALPHA,
    RESAMPLES,
    PairedDifference,
    difference,
    holm,
    smallest_shown,
)
from sdpo.stats.kl import Estimate
from sdpo.stats.reserve_parts import part_of
from sdpo.study.measures import ACCURACY, MEASURES, Measure, measure_of
from sdpo.study.results import PairValues, SuiteScore, TrialResult
from sdpo.study.scores import ItemScores, averaged, by_key


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True)


class ArmLine(_Said):
    """An arm came to this, averaged over its trials where it has several.

    ``strategy`` is that of its partition, ``pairs`` are those of its steps. ``accuracy`` is the
    share of reserved pairs with gamma > 0, ``rose`` that of pairs whose gamma rose from S, ties one
    half. ``win_rates`` are over S, by title of the judge. ``rows_scored`` are pairs whose log-probs
    had to be computed for it; ``scorings`` of these are of a step's reference on its D_t.
    ``trained`` and ``shared`` count steps.
    """

    arm: str
    trials: list[str]
    strategy: str
    pairs: list[int]
    accuracy: Estimate
    rose: Estimate
    gamma: Estimate
    kl: Estimate | None
    characters: float | None
    suites: list[SuiteScore]
    win_rates: dict[str, Estimate] = {}
    seconds: float
    rows_scored: int
    scorings: int
    trained: int
    shared: int


class Contrast(Measure):
    """An arm differs from the first in a measure so, pair by pair or item by item.

    ``corrected`` is the p-value after Holm's correction. ``smallest``: the smallest difference that
    these pairs, and seeds where there are several, would have shown in 80% of all tries.
    ``is_shown``: see the module's docstring.
    """

    arm: str
    found: PairedDifference
    corrected: float | None
    smallest: float | None
    is_shown: bool


class Comparison(_Said):
    """A comparison is of arms on ``pairs`` reserved pairs of ``prompts`` prompts.

    ``left_out``: reserved pairs that not all arms have, or by which settings of an arm were chosen:
    then ``chosen`` names such arms. ``tests``: differences that were tested
    together. ``same``: arms, by twos, that came to the same model.
    """

    study: str
    pairs: int
    prompts: int
    left_out: int
    chosen: list[str] = []
    seeds: int
    arms: list[ArmLine]
    contrasts: list[Contrast]
    tests: int
    same: list[tuple[str, str]]
    failed: dict[str, str]

    def as_json(self) -> dict[str, JsonValue]:
        """Return what the file has."""
        return self.model_dump(mode="json")


def compare(
    study: str,
    results: Sequence[TrialResult],
    values: Mapping[str, PairValues],
    *,
    seed: int,
    failed: Mapping[str, str] = {},
    measures: Sequence[Measure] = MEASURES,
) -> Comparison:
    """Compare the arms that ``results`` are of with the first of them.

    ``values``: gamma of the reserved pairs by trial. ``seed``: of the bootstrap. ``measures``: what
    is tested.

    Raises:
        UserError: fewer than two arms came to a result, or they have no reserved pair in common.
    """
    arms: dict[str, list[TrialResult]] = {}
    for result in results:
        arms.setdefault(result.arm, []).append(result)
    if len(arms) < 2:
        raise UserError(
            f"nothing can be compared: {len(arms)} of the arms came to a result. "
            + "; ".join(f"{trial} failed: {why}" for trial, why in failed.items())
        )
    chosen = [arm for arm, trials in arms.items() if any(t.compare_on == "report" for t in trials)]
    common = _common(values, [result.trial for result in results], is_chosen=bool(chosen))
    everything = reduce(np.union1d, (values[r.trial].pair_id for r in results))
    at = {result.trial: values[result.trial].at(common) for result in results}
    if chosen:
        at = {trial: _reported(each) for trial, each in at.items()}
    prompts = at[results[0].trial].prompt_key
    contrasts = _contrasts(arms, at, prompts, measures)
    return Comparison(
        study=study,
        pairs=len(common),
        prompts=len(np.unique(prompts)),
        left_out=len(everything) - len(common),
        chosen=chosen,
        seeds=max(len(trials) for trials in arms.values()),
        arms=[_line(arm, trials, at, seed=seed) for arm, trials in arms.items()],
        contrasts=contrasts,
        tests=sum(contrast.found.p is not None for contrast in contrasts),
        same=_same(arms),
        failed=dict(failed),
    )


def _common(
    values: Mapping[str, PairValues], trials: Sequence[str], *, is_chosen: bool
) -> np.ndarray:
    """Return the pairs of all trials, of the report part alone where settings were chosen."""
    common: np.ndarray = reduce(np.intersect1d, (values[trial].pair_id for trial in trials))
    if is_chosen:
        common = common[part_of(values[trials[0]].at(common).prompt_key) == "report"]
    if not len(common):
        raise UserError(
            f"{' and '.join(trials)} have no reserved pair in common, so that nothing can be "
            "compared: give them the same data, and the same data.reserve"
        )
    return common


def _reported(values: PairValues) -> PairValues:
    return replace(values, scores=[each.reported() for each in values.scores])


def _of(measure: Measure, values: PairValues) -> Floats:
    return (values.gamma > 0).astype(np.float64) if measure == ACCURACY else values.gamma


def _contrasts(
    arms: Mapping[str, Sequence[TrialResult]],
    at: Mapping[str, PairValues],
    prompts: np.ndarray,
    measures: Sequence[Measure],
) -> list[Contrast]:
    """Return the contrast of every arm but the first, measure by measure."""
    (_, of_first), *others = arms.items()
    found: list[tuple[str, Measure, PairedDifference]] = []
    for arm, trials in others:
        seeds = [[trial.seed for trial in each] for each in (trials, of_first)]
        for measure in measures:
            now, before = (
                np.stack([_of(measure, at[trial.trial]) for trial in each])
                for each in (trials, of_first)
            )
            paired = difference(now, before, prompts, is_paired_by_seed=seeds[0] == seeds[1])
            found.append((arm, measure, paired))
        found += [(arm, *each) for each in _of_scores(trials, of_first, at)]
    corrected = holm([paired.p for _, _, paired in found])
    tests = sum(p is not None for p in corrected)
    return [
        Contrast(
            **measure.model_dump(),
            arm=arm,
            found=paired,
            corrected=p,
            smallest=smallest_shown(paired.se, tests=tests, over_seeds=paired.over_seeds),
            is_shown=p is not None and p < ALPHA and _leave_out_zero(paired),
        )
        for (arm, measure, paired), p in zip(found, corrected, strict=True)
    ]


def _of_scores(
    trials: Sequence[TrialResult],
    of_first: Sequence[TrialResult],
    at: Mapping[str, PairValues],
) -> Iterator[tuple[Measure, PairedDifference]]:
    """Yield how an arm differs from the first in what both were judged by, item by item.

    Of few items nothing is said.
    """
    both = [*trials, *of_first]
    is_paired = [trial.seed for trial in trials] == [trial.seed for trial in of_first]
    for found in by_key([at[trial.trial].scores for trial in both]).values():
        if len(np.unique(found[0].clusters)) < FEWEST_PAIRS:
            continue
        rows = np.stack([each.values for each in found])
        now, first = rows[: len(trials)], rows[len(trials) :]
        clusters = found[0].clusters
        paired = difference(now, first, clusters, is_paired_by_seed=is_paired)
        yield measure_of(found[0]), paired


def _leave_out_zero(found: PairedDifference) -> bool:
    """Return whether 0 is outside of the interval over pairs and, if there is one, over seeds."""
    bounds = [(found.low, found.high)]
    if found.over_seeds is not None and found.over_seeds.seeds > 1:
        bounds.append((found.over_seeds.low, found.over_seeds.high))
    return all(
        low is not None and high is not None and not low <= 0 <= high for low, high in bounds
    )


def _line(
    arm: str, trials: Sequence[TrialResult], at: Mapping[str, PairValues], *, seed: int
) -> ArmLine:
    rows = [at[trial.trial] for trial in trials]
    prompts = rows[0].prompt_key
    change = [row.gamma - row.start for row in rows]
    columns = np.stack(
        [
            np.mean([_of(ACCURACY, row) for row in rows], axis=0),
            np.mean([(moved > 0) + 0.5 * (moved == 0) for moved in change], axis=0),
            np.mean([row.gamma for row in rows], axis=0),
        ],
        axis=1,
    )
    bounds = intervals(columns, prompts, resamples=RESAMPLES, seed=seed)
    accuracy, rose, gamma = (
        Estimate(mean=float(column.mean()), low=low, high=high)
        for column, (low, high) in zip(columns.T, bounds, strict=True)
    )
    steps = [step for trial in trials for step in trial.steps]
    return ArmLine(
        arm=arm,
        trials=[trial.trial for trial in trials],
        strategy=trials[0].strategy,
        pairs=[step.pairs for step in trials[0].steps],
        accuracy=accuracy,
        rose=rose,
        gamma=gamma,
        kl=_kl(trials),
        characters=_mean([trial.characters for trial in trials]),
        suites=_suites(trials),
        win_rates=_win_rates([row.scores for row in rows], seed=seed),
        seconds=sum(trial.seconds for trial in trials),
        rows_scored=sum(trial.rows_scored for trial in trials),
        scorings=sum(step.is_scored for step in steps),
        trained=sum(not step.shared_from for step in steps),
        shared=sum(bool(step.shared_from) for step in steps),
    )


def _kl(trials: Sequence[TrialResult]) -> Estimate | None:
    """Return the KL of a single trial, or the mean of several, which then has no interval."""
    found = [trial.kl for trial in trials]
    if len(found) == 1 or found[0] is None:
        return found[0]
    mean = _mean([each.mean if each else None for each in found])
    return None if mean is None else Estimate(mean=mean, low=None, high=None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _suites(trials: Sequence[TrialResult]) -> list[SuiteScore]:
    """Return the mean scores on suites on which all trials were judged."""
    found = []
    for score in trials[0].suites:
        same = [
            each.value
            for trial in trials
            for each in trial.suites
            if (each.name, each.metric, each.asked) == (score.name, score.metric, score.asked)
        ]
        if len(same) == len(trials):
            found.append(score.model_copy(update={"value": _mean(same)}))
    return found


def _win_rates(trials: Sequence[Sequence[ItemScores]], *, seed: int) -> dict[str, Estimate]:
    """Return how often an arm's answers win over those of S, averaged over its trials."""
    found = {}
    for scores in averaged(trials).values():
        if scores.kind == "win_rate":
            few = len(np.unique(scores.clusters)) < FEWEST_PAIRS
            ((low, high),) = intervals(
                scores.values[:, None], scores.clusters, resamples=RESAMPLES, seed=seed
            )
            low, high = (None, None) if few else (low, high)
            found[scores.title] = Estimate(mean=float(scores.values.mean()), low=low, high=high)
    return found


def _same(arms: Mapping[str, Sequence[TrialResult]]) -> list[tuple[str, str]]:
    """Return arms, by twos, whose trials came to the same models."""
    models: dict[tuple[str, ...], str] = {}
    found = []
    for arm, trials in arms.items():
        digests = tuple(trial.model for trial in trials)
        if digests in models:
            found.append((models[digests], arm))
        else:
            models[digests] = arm
    return found
