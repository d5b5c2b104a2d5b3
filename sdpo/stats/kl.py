"""Estimate KL, with intervals, from the numbers of each sequence."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdpo.stats.gamma import Entry, bootstrap_means

ESTIMATORS = ("kl", "k1", "k3")


def kl_view(table: pa.Table, *, model: str, resamples: int, seed: int) -> list[Entry]:
    """Return the entries of ``kl.json``: one for each model compared with and way of sampling.

    ``per_sequence`` are means of the sums over a completion, ``per_token`` sums over all tokens
    divided by their number; both with 95% intervals that resample prompts. ``unfinished_share`` of
    the completions were cut at the limit: their KL is that of the beginning alone.
    """
    entries = []
    samplers, againsts = table["sampler"].to_pylist(), table["against"].to_pylist()
    for sampler, against in dict.fromkeys(zip(samplers, againsts, strict=True)):
        mask = [(s, a) == (sampler, against) for s, a in zip(samplers, againsts, strict=True)]
        rows = table.filter(pa.array(mask))
        entries.append(
            {
                "model": model,
                "against": against,
                "sampler": sampler,
                **_statistics(rows, resamples=resamples, seed=seed),
            }
        )
    return entries


def _statistics(rows: pa.Table, *, resamples: int, seed: int) -> Entry:
    prompts = np.asarray(rows["prompt_key"].to_pylist(), dtype=np.str_)
    tokens = rows["tokens"].to_numpy().astype(np.float64)
    values = np.stack([*(rows[name].to_numpy() for name in ESTIMATORS), tokens], axis=1)
    drawn = bootstrap_means(values, prompts, resamples=resamples, seed=seed)
    finished = rows["finished"].to_numpy(zero_copy_only=False)
    means = values.mean(axis=0)
    per_sequence, per_token = {}, {}
    for column, name in enumerate(ESTIMATORS):
        sums = None if drawn is None else drawn[:, column]
        ratios = None if drawn is None else drawn[:, column] / drawn[:, -1]
        per_sequence[name] = _estimate(means[column], sums)
        per_token[name] = _estimate(means[column] / means[-1] if means[-1] else None, ratios)
    return {
        "prompts": len(np.unique(prompts)),
        "sequences": rows.num_rows,
        "tokens": int(tokens.sum()),
        "unfinished_share": float(1 - finished.mean()),
        "per_sequence": per_sequence,
        "per_token": per_token,
    }


def _estimate(mean: float | None, drawn: NDArray[np.float64] | None) -> Entry:
    """Return the mean and its 95% percentile interval, which is None for a single prompt."""
    if mean is None or drawn is None or not np.isfinite(drawn).all():
        return {"mean": None if mean is None else float(mean), "low": None, "high": None}
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"mean": float(mean), "low": float(low), "high": float(high)}
