"""Compute how often one model's answers win over another's, raw and with length held equal.

The length-controlled rate is that of AlpacaEval 2 (arXiv 2404.04475, section 3) without the term
for the difficulty of a prompt: the verdicts y in [0, 1] are fitted by

    P(y = 1) = sigmoid(theta + phi tanh((l_1 - l_2) / sd(l_1 - l_2)))

with l the characters of the two answers, and the rate is sigmoid(theta): what would have been won
had both answers the same length. phi has a weak normal prior of standard deviation 10 about 0,
without which a judge that goes by length alone would have no finite fit. theta has none.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo.stats.bootstrap import Bounds, Floats, bootstrap_means, bounds

PRIOR_SD = 10.0
_STEPS = 60
_LARGEST = 30.0
"""A log-odds beyond this is a rate of 0 or 1 in any case."""
_HALVINGS = 30
_SMALL = 1e-9
_ROUNDING = 1e-12
_BLOCK = 4_000_000
"""Numbers of resampled verdicts held in memory at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """One model won so often over another in ``comparisons`` on ``prompts``.

    ``rate`` counts a tie as half, ``controlled`` is the length-controlled rate (None: all verdicts
    are alike, so that length cannot be told apart), both with 95% intervals that resample prompts.
    ``agreement``: share of comparisons with the same verdict in both orders; ``ties``: share that
    is neither won nor lost; ``missing``: comparisons without a verdict, which do not count.
    """

    rate: float
    bounds: Bounds
    controlled: float | None
    controlled_bounds: Bounds
    agreement: float
    ties: float
    comparisons: int
    missing: int
    prompts: int


def win_rate(
    forward: Floats,
    backward: Floats,
    lengths: NDArray[np.int64],
    prompts: NDArray[np.str_],
    *,
    resamples: int,
    seed: int,
) -> WinRate | None:
    """Return the win rate of the first answers; None where no comparison has a verdict.

    ``forward`` and ``backward`` ``[n]`` are what the first answer won in both orders, NaN where the
    judge said nothing; ``lengths`` ``[n, 2]`` the characters of both answers.
    """
    has = ~(np.isnan(forward) | np.isnan(backward))
    if not has.any():
        return None
    one, other = forward[has], backward[has]
    values, clusters = (one + other) / 2, prompts[has]
    apart = (lengths[has, 0] - lengths[has, 1]).astype(np.float64)
    means = bootstrap_means(values[:, None], clusters, resamples=resamples, seed=seed)
    controlled: float | None = None
    controlled_bounds: Bounds = (None, None)
    if values.min() < values.max() or 0 < values[0] < 1:
        x = scaled(apart)
        fitted = fit(values, x)[0]
        controlled = float(_sigmoid(fitted[0]))
        controlled_bounds = _controlled_bounds(
            values, x, clusters, start=fitted, resamples=resamples, seed=seed
        )
    return WinRate(
        rate=float(values.mean()),
        bounds=bounds(None if means is None else means[:, 0]),
        controlled=controlled,
        controlled_bounds=controlled_bounds,
        agreement=float((one == other).mean()),
        ties=float((values == 0.5).mean()),
        comparisons=int(has.sum()),
        missing=int((~has).sum()),
        prompts=len(np.unique(clusters)),
    )


def scaled(apart: Floats) -> Floats:
    """Return the regressor for differences of length ``[n]``; zeros where all are equal."""
    spread = float(apart.std())
    return np.tanh(apart / spread) if spread else np.zeros_like(apart)


def fit(
    values: Floats, x: Floats, weights: Floats | None = None, *, start: Floats | None = None
) -> Floats:
    """Return (theta, phi) of the fit for each row of ``weights`` ``[r, n]``, as ``[r, 2]``.

    ``values`` ``[n]`` in [0, 1] are soft labels. Newton's method on the penalised log-likelihood,
    which is concave, from ``start`` ``[2]``; a step is halved where it would go down.
    """
    w = np.ones((1, len(values))) if weights is None else weights
    found = np.tile(np.zeros(2) if start is None else start, (len(w), 1))
    rows = np.arange(len(w))  # those that still move
    for _ in range(_STEPS):
        now, own = found[rows], w[rows]
        step = _newton_step(now, values, x, own)
        loss, size = _loss(now, values, x, own), np.ones((len(rows), 1))
        tried = np.clip(now - step, -_LARGEST, _LARGEST)
        for _ in range(_HALVINGS):
            worse = np.flatnonzero(
                _loss(tried, values, x, own) > loss + _ROUNDING * (1 + np.abs(loss))
            )
            if not len(worse):
                break
            size[worse] /= 2
            tried[worse] = np.clip((now - size * step)[worse], -_LARGEST, _LARGEST)
        found[rows] = tried
        rows = rows[np.abs(tried - now).max(axis=1) > _SMALL]
        if not len(rows):
            break
    return found


def _newton_step(at: Floats, values: Floats, x: Floats, w: Floats) -> Floats:
    """Return the inverse Hessian times the gradient, ``[r, 2]``."""
    p = _sigmoid(at[:, :1] + at[:, 1:] * x)
    off, curve = w * (p - values), w * p * (1 - p)
    g0, g1 = off.sum(1), off @ x + at[:, 1] / PRIOR_SD**2
    a, b = curve.sum(1) + _SMALL, curve @ x
    c = curve @ (x * x) + 1 / PRIOR_SD**2
    det = np.maximum(a * c - b * b, _SMALL * _SMALL)
    return np.stack([(c * g0 - b * g1) / det, (a * g1 - b * g0) / det], axis=1)


def _loss(at: Floats, values: Floats, x: Floats, w: Floats) -> Floats:
    z = at[:, :1] + at[:, 1:] * x
    likelihood: Floats = (w * (np.logaddexp(0, z) - values * z)).sum(1)
    return likelihood + at[:, 1] ** 2 / (2 * PRIOR_SD**2)


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-z)))


def _controlled_bounds(
    values: Floats,
    x: Floats,
    prompts: NDArray[np.str_],
    *,
    start: Floats,
    resamples: int,
    seed: int,
) -> Bounds:
    """Return the 95% interval of the length-controlled rate; a resample is fitted anew."""
    _, cluster = np.unique(prompts, return_inverse=True)
    count = int(cluster.max()) + 1
    if count < 2:
        return None, None
    generator = np.random.default_rng(seed)
    rates, block = [], max(1, _BLOCK // len(values))
    for first in range(0, resamples, block):
        size = min(block, resamples - first)
        drawn = generator.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        fitted = fit(values, x, times[:, cluster].astype(np.float64), start=start)
        rates.append(_sigmoid(fitted[:, 0]))
    return bounds(np.concatenate(rates))
