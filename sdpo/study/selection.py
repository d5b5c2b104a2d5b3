"""Choose the best trial of a sweep on one part of the reserve, and report it on the other."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue

from sdpo.errors import UserError
from sdpo.stats.bootstrap import intervals
from sdpo.stats.differences import RESAMPLES
from sdpo.stats.kl import Estimate
from sdpo.study.comparison import Comparison, compare
from sdpo.study.measures import ACCURACY
from sdpo.study.results import PairValues, TrialResult
from sdpo.study.split import split


class Scored(BaseModel):
    """Settings scored so on the selection part: by ranking accuracy, then by mean gamma.

    Both are averaged over seeds; ``trial`` is the run of the first.
    """

    model_config = ConfigDict(frozen=True)

    trial: str
    settings: str
    accuracy: Estimate
    gamma: float


class Swept(BaseModel):
    """A sweep came to this: trials by their score, best first, and what the report part says.

    ``found`` compares them on the report part with the best, which stands first. ``pairs`` and
    ``prompts`` are those of the selection part. ``scorings`` counts, by step, how often a reference
    had to be scored on the step's pairs. ``importance`` is by setting, where it can be told.
    """

    model_config = ConfigDict(frozen=True)

    over: list[str]
    selection: list[Scored]
    pairs: int
    prompts: int
    found: Comparison
    scorings: dict[int, int]
    importance: dict[str, float] = {}
    pruned: dict[str, str] = {}

    @property
    def best(self) -> str:
        """Return the name of the best trial's run."""
        return self.selection[0].trial

    def as_json(self) -> dict[str, JsonValue]:
        """Return what the file has."""
        return self.model_dump(mode="json")


def select(
    study: str,
    results: Sequence[TrialResult],
    values: Mapping[str, PairValues],
    *,
    over: Sequence[str],
    seed: int,
    failed: Mapping[str, str] = {},
) -> Swept:
    """Choose by ranking accuracy on the selection part and compare on the report part.

    ``values``: gamma of the reserved pairs by trial. ``seed``: of the bootstrap.

    Raises:
        UserError: fewer than two trials came to a result, or a part of the reserve is empty.
    """
    chosen = {result.trial: split(values[result.trial], "selection") for result in results}
    reported = {result.trial: split(values[result.trial], "report") for result in results}
    for part, found in (("selection", chosen), ("report", reported)):
        if not all(len(each.pair_id) for each in found.values()):
            raise UserError(
                f"the part of the reserve for {part} is empty, so nothing can be chosen without "
                "being reported on as well: set more pairs aside (data.reserve)"
            )
    by_settings: dict[str, list[TrialResult]] = {}
    for result in results:
        by_settings.setdefault(result.arm, []).append(result)
    scored = sorted(
        (
            _score(seeds[0], [chosen[each.trial] for each in seeds], seed=seed)
            for seeds in by_settings.values()
        ),
        key=lambda each: (-(each.accuracy.mean or 0.0), -each.gamma),
    )
    first = chosen[scored[0].trial]
    return Swept(
        over=list(over),
        selection=scored,
        pairs=len(first.pair_id),
        prompts=len(np.unique(first.prompt_key)),
        found=compare(
            study,
            [result for each in scored for result in by_settings[each.settings]],
            reported,
            seed=seed,
            failed=failed,
            # Of gamma more is not better: it grows with every step away from S.
            measures=(ACCURACY,),
        ),
        scorings=scorings(results),
    )


def _score(result: TrialResult, values: Sequence[PairValues], *, seed: int) -> Scored:
    """Return the score of settings, averaged over their seeds; ``result`` is of the first."""
    right = np.mean([each.gamma > 0 for each in values], axis=0)
    prompts = values[0].prompt_key
    ((low, high),) = intervals(right[:, None], prompts, resamples=RESAMPLES, seed=seed)
    return Scored(
        trial=result.trial,
        settings=result.arm,
        accuracy=Estimate(mean=float(right.mean()), low=low, high=high),
        gamma=float(np.mean([each.gamma.mean() for each in values])),
    )


def scorings(results: Sequence[TrialResult]) -> dict[int, int]:
    """Return, by step, how often the log-probs of a reference on its pairs had to be computed."""
    counted = Counter(step.step for r in results for step in r.steps if step.is_scored)
    steps = sorted({step.step for result in results for step in result.steps})
    return {step: counted[step] for step in steps}
