"""Compute 95% percentile bootstrap intervals that resample prompts, not pairs.

Pairs of one prompt are not independent. Every interval starts from the same seed, so no number
depends on which others are computed with it.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bounds = tuple[float | None, float | None]
"""Bounds of an interval are None where nothing says how the number varies."""

_BLOCK = 2_000_000
"""Bootstrap draws held in memory at once."""


def bootstrap_means(
    values: Floats, clusters: NDArray[np.str_], *, resamples: int, seed: int | list[int]
) -> Floats | None:
    """Return means of ``values`` ``[n, k]`` over resampled clusters, ``[resamples, k]``.

    Whole clusters ``[n]`` are drawn with replacement, so pairs of one prompt stay together. None
    with fewer than two clusters: nothing then says how the mean varies.
    """
    _, cluster = np.unique(clusters, return_inverse=True)
    count = int(cluster.max()) + 1 if len(cluster) else 0
    if count < 2:
        return None
    columns = [*values.T, np.ones(len(values))]
    sums = np.stack([np.bincount(cluster, weights=column) for column in columns], axis=1)
    generator = np.random.default_rng(seed)
    means, block = [], max(1, _BLOCK // count)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = generator.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        totals = times @ sums
        means.append(totals[:, :-1] / totals[:, -1:])
    return np.concatenate(means)


def intervals(
    values: Floats, prompts: NDArray[np.str_], *, resamples: int, seed: int
) -> list[Bounds]:
    """Return a 95% interval of the mean of each column of ``values``."""
    means = bootstrap_means(values, prompts, resamples=resamples, seed=seed)
    return [bounds(None if means is None else means[:, k]) for k in range(values.shape[1])]


def bounds(resampled: Floats | None) -> Bounds:
    """Return the 95% interval of resampled means ``[resamples]``."""
    if resampled is None or np.isnan(resampled).any():
        return None, None
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def mean_of(values: np.ndarray) -> float | None:
    """Return the mean of ``values``; None where there are none."""
    return float(values.mean()) if len(values) else None
