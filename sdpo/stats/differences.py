"""Tell whether models differ on the pairs that all of them were measured on, and how surely.

A difference is paired: of every pair, one model's value less the other's, averaged over training
seeds. Its interval over pairs is a 95% percentile bootstrap that resamples prompts; it says how far
the result depends on which pairs were set aside, and nothing of training again. The interval over
seeds is Student's t of the differences of single seeds; it says the reverse. Many differences that
are tested together are corrected for (Holm 1979, Scand. J. Statist. 6, 65-70).
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict

from sdpo.stats.bootstrap import Floats, bootstrap_means, bounds

ALPHA = 0.05
POWER = 0.8
"""A smallest difference is one that a test at ``ALPHA`` shows so often."""
RESAMPLES = 4000
"""The bootstrap of a comparison draws so often: no p-value is below 2 / (RESAMPLES + 1)."""

_T_975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)
"""The 97.5% quantiles of Student's t with 1, 2, ... 30 degrees of freedom."""


class SeedInterval(BaseModel):
    """The mean of single seeds' differences has this 95% interval of Student's t.

    It is None for one seed, which does not say how seeds vary.
    """

    model_config = ConfigDict(frozen=True)

    seeds: int
    low: float | None
    high: float | None


class PairedDifference(BaseModel):
    """Two models differ by ``mean`` on ``pairs`` pairs of ``prompts`` prompts.

    ``low`` and ``high`` bound it over pairs, ``over_seeds`` over seeds; None where nothing varies.
    ``p`` is two-sided, of the bootstrap over pairs; ``se`` the bootstrap's standard error.
    """

    model_config = ConfigDict(frozen=True)

    pairs: int
    prompts: int
    mean: float
    low: float | None
    high: float | None
    se: float | None
    p: float | None
    over_seeds: SeedInterval | None = None

    @property
    def varies(self) -> bool:
        """Return whether pairs differ from one another in the difference, as far as is known."""
        return self.low is not None or self.prompts < 2


def difference(
    now: Floats,
    first: Floats,
    prompts: np.ndarray,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    is_paired_by_seed: bool = True,
) -> PairedDifference:
    """Return how ``now`` ``[seeds, pairs]`` differs from ``first`` ``[seeds, pairs]``.

    ``prompts`` ``[pairs]``: pairs of one prompt are drawn together. Rows are averaged over seeds
    first. With ``is_paired_by_seed`` row k of both was trained with one seed, and with several rows
    there is an interval over seeds.
    """
    change = now.mean(axis=0) - first.mean(axis=0)
    drawn = bootstrap_means(change[:, None], prompts, resamples=resamples, seed=seed)
    means = None if drawn is None else drawn[:, 0]
    # Where no pair differs, resampling the same zeros would claim certainty.
    if means is not None and np.ptp(means) == 0:
        means = None
    low, high = bounds(means)
    return PairedDifference(
        pairs=len(change),
        prompts=len(np.unique(prompts)),
        mean=float(change.mean()),
        low=low,
        high=high,
        se=None if means is None else float(means.std(ddof=1)),
        p=None if means is None else p_value(means),
        over_seeds=_over_seeds(now, first) if is_paired_by_seed else None,
    )


def p_value(drawn: Floats) -> float:
    """Return the two-sided p-value of "the mean is 0" from resampled means ``[resamples]``.

    It is the smaller tail beyond 0, doubled, each tail with one draw more than was seen.
    """
    tails = (np.sum(drawn <= 0), np.sum(drawn >= 0))
    return float(min(1.0, 2 * (1 + min(tails)) / (len(drawn) + 1)))


def _over_seeds(now: Floats, first: Floats) -> SeedInterval | None:
    if now.shape[0] != first.shape[0]:
        return None
    found = (now - first).mean(axis=1)
    seeds = len(found)
    if seeds < 2:
        return SeedInterval(seeds=seeds, low=None, high=None)
    half = t_quantile(seeds - 1) * float(found.std(ddof=1)) / seeds**0.5
    mean = float(found.mean())
    return SeedInterval(seeds=seeds, low=mean - half, high=mean + half)


def t_quantile(degrees: int) -> float:
    """Return the 97.5% quantile of Student's t; the normal's from 31 degrees of freedom on."""
    return _T_975[degrees - 1] if degrees <= len(_T_975) else NormalDist().inv_cdf(0.975)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for one another by Holm; those that are None count for nothing."""
    known = sorted((p, at) for at, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    above = 0.0
    for rank, (p, at) in enumerate(known):
        above = max(above, min(1.0, (len(known) - rank) * p))
        corrected[at] = above
    return corrected


def smallest_shown(se: float | None, *, tests: int) -> float | None:
    """Return the smallest difference that would be shown in ``POWER`` of all tries.

    ``se``: the standard error of the difference; ``tests``: how many are tested together, of which
    Holm's first step has to take the smallest. Normal theory.
    """
    if se is None:
        return None
    normal = NormalDist()
    return se * (normal.inv_cdf(1 - ALPHA / (2 * max(1, tests))) + normal.inv_cdf(POWER))
