"""Estimate KL, with intervals, from the numbers of each sequence."""

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, JsonValue

from sdpo.stats.bootstrap import Floats, bootstrap_means

ESTIMATORS = ("kl", "k1", "k3")


class Estimate(BaseModel):
    """An estimate of KL has a mean in nats and its 95% interval; None: it cannot be had."""

    model_config = ConfigDict(frozen=True)

    mean: float | None
    low: float | None
    high: float | None


class KlRow(BaseModel):
    """A row of ``kl.json`` is of one model ``against`` another, and one way of sampling.

    ``per_sequence`` are means of the sums over a completion, ``per_token`` sums over all tokens
    divided by their number, by the name of the estimator. ``unfinished_share`` of the completions
    were cut at the limit: their KL is that of the beginning alone.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    against: str
    sampler: str
    prompts: int
    sequences: int
    tokens: int
    unfinished_share: float
    per_sequence: dict[str, Estimate]
    per_token: dict[str, Estimate]

    def as_json(self) -> JsonValue:
        """Return what the file has."""
        return self.model_dump(mode="json")


def kl_view(table: pa.Table, *, model: str, resamples: int, seed: int) -> list[KlRow]:
    """Return the rows of ``kl.json``: one for each model compared with and way of sampling.

    Intervals resample prompts.
    """
    samplers, againsts = table["sampler"].to_pylist(), table["against"].to_pylist()
    rows = []
    for sampler, against in dict.fromkeys(zip(samplers, againsts, strict=True)):
        mask = [(s, a) == (sampler, against) for s, a in zip(samplers, againsts, strict=True)]
        sequences = table.filter(pa.array(mask))
        rows.append(
            _row(
                sequences,
                model=model,
                against=against,
                sampler=sampler,
                resamples=resamples,
                seed=seed,
            )
        )
    return rows


def _row(
    rows: pa.Table, *, model: str, against: str, sampler: str, resamples: int, seed: int
) -> KlRow:
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
    return KlRow(
        model=model,
        against=against,
        sampler=sampler,
        prompts=len(np.unique(prompts)),
        sequences=rows.num_rows,
        tokens=int(tokens.sum()),
        unfinished_share=float(1 - finished.mean()),
        per_sequence=per_sequence,
        per_token=per_token,
    )


def _estimate(mean: float | None, drawn: Floats | None) -> Estimate:
    """Return the mean and its 95% percentile interval, which is None for a single prompt."""
    if mean is None or drawn is None or not np.isfinite(drawn).all():
        return Estimate(mean=None if mean is None else float(mean), low=None, high=None)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(mean=float(mean), low=float(low), high=float(high))
