"""Compute statistics of gamma_ref: what a model prefers, and how that differs between models.

gamma_M(x) = log M(chosen|x) - log M(rejected|x), raw sums in nats (sDPO, arXiv 2403.19270, section
3.2). This module owns the numbers in ``gamma.json`` and the contamination test; it takes tables of
measured log-probs and neither reads nor writes a file. Where a number cannot be had (no pairs, one
prompt) it is None, never NaN.

Intervals are 95% percentile bootstrap intervals that resample prompts, not pairs: pairs of one
prompt are not independent. Every interval starts from the same seed, so no number depends on which
others are computed with it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdpo.errors import Fault

Floats = NDArray[np.float64]
Entry = dict[str, Any]

QUANTILES = (1, 5, 25, 50, 75, 95, 99)
CONTAMINATION_NATS = 5.0
"""A gap below this is never called contamination, however narrow its interval."""
RESERVE = "reserve:"
"""Prefix of the probe names that are a source's reserve."""

_BLOCK = 2_000_000
"""Bootstrap draws held in memory at once."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A table holds one model's log-probs of ``n`` pairs, sorted by pair id.

    Log-probs are ``[n]``, in nats, summed over tokens."""

    pair_id: NDArray[np.str_]
    prompt_key: NDArray[np.str_]
    source: NDArray[np.str_]
    sampled: NDArray[np.bool_]
    complete: NDArray[np.bool_]
    chosen_logps: Floats
    rejected_logps: Floats
    chosen_tokens: NDArray[np.int32]
    rejected_tokens: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.pair_id)

    @property
    def gamma(self) -> Floats:
        """Return chosen minus rejected log-prob, float64 ``[n]``, nats."""
        return self.chosen_logps - self.rejected_logps

    def take(self, rows: np.ndarray) -> "Measured":
        """Return the pairs that ``rows``, a mask or an array of indices, names."""
        return Measured(*(getattr(self, field.name)[rows] for field in fields(self)))


def split_probes(table: pa.Table) -> dict[str, Measured]:
    """Return the probes in one model's table (``probes/M_t.parquet``) by name, sorted.

    Raises:
        Fault: a pair stands twice in a probe, or has a log-prob that is not finite or of no token.
    """
    columns = {f.name: np.asarray(table[f.name].to_pylist()) for f in fields(Measured)}
    names = np.asarray(table["probe"].to_pylist(), dtype=np.str_)
    everything = Measured(**columns)
    probes = {}
    for name in np.unique(names).tolist():
        rows = everything.take(np.flatnonzero(names == name))
        rows = rows.take(np.argsort(rows.pair_id))
        if (rows.pair_id[1:] == rows.pair_id[:-1]).any():
            raise Fault(f"probe {name} has a pair more than once")
        bad = ~np.isfinite(rows.gamma) | (rows.chosen_tokens < 1) | (rows.rejected_tokens < 1)
        if bad.any():
            listed = rows.pair_id[bad][:5].tolist()
            raise Fault(f"probe {name} has log-probs that are not finite, or of no token: {listed}")
        probes[name] = rows
    return probes


def statistics(rows: Measured) -> Entry:
    """Return moments, quantiles and accuracy of gamma over ``rows``.

    ``se`` is sd / sqrt(pairs), as if pairs were independent; intervals are in :func:`gamma_view`.
    """
    gamma, pairs = rows.gamma, len(rows)
    sd = float(gamma.std(ddof=1)) if pairs > 1 else None
    quantiles = np.percentile(gamma, QUANTILES).tolist() if pairs else [None] * len(QUANTILES)
    per_token = rows.chosen_logps / rows.chosen_tokens - rows.rejected_logps / rows.rejected_tokens
    return {
        "pairs": pairs,
        "mean": _mean(gamma),
        "sd": sd,
        "se": None if sd is None else sd / pairs**0.5,
        "quantiles": {str(q): value for q, value in zip(QUANTILES, quantiles, strict=True)},
        "ranking_accuracy": _mean(gamma > 0),
        "per_token_mean": _mean(per_token),
        "length_correlation": _correlation(
            gamma, rows.chosen_tokens.astype(np.float64) - rows.rejected_tokens
        ),
    }


def paired_difference(
    now: Measured, earlier: Measured, *, resamples: int, seed: int, beta: float | None = None
) -> Entry:
    """Return d = gamma now - gamma earlier on the pairs that both have, with its interval.

    ``accuracy`` is the share of pairs whose gamma rose, ties counting 1/2; ``share_above`` leaves
    ties out. ``margin`` = beta * mean(d): the trainer's rewards/margins where ``earlier`` is its
    reference. ``ranking_accuracy_change`` is the difference of the two ranking accuracies.
    """
    _, mine, theirs = np.intersect1d(
        now.pair_id, earlier.pair_id, assume_unique=True, return_indices=True
    )
    rows, gamma = now.take(mine), now.gamma[mine]
    before = earlier.gamma[theirs]
    change = gamma - before
    correct = (gamma > 0).astype(np.float64) - (before > 0)
    (low, high), (correct_low, correct_high) = _intervals(
        np.stack([change, correct], axis=1), rows.prompt_key, resamples=resamples, seed=seed
    )
    mean = _mean(change)
    return {
        "pairs": len(rows),
        "mean": mean,
        "low": low,
        "high": high,
        "share_above": _mean(change > 0),
        "accuracy": _mean((change > 0) + 0.5 * (change == 0)),
        "margin": None if beta is None or mean is None else beta * mean,
        "ranking_accuracy_change": _mean(correct),
        "ranking_accuracy_change_low": correct_low,
        "ranking_accuracy_change_high": correct_high,
    }


def gamma_view(
    probes: Mapping[str, pa.Table],
    *,
    step: int,
    beta: float | None,
    resamples: int,
    seed: int,
    sizes: Mapping[int, int] | None = None,
) -> list[Entry]:
    """Return the entries of ``step-<step>/gamma.json``: M_0..M_step on every probe.

    First comes M_{step-1} on D_step whole (the reference that the step trained with); then every
    model on the reserve of every source and on the sample of every partition. ``whole`` says that
    the entry covers the reserve or the partition entirely; ``sizes`` are the pairs of each
    partition, by default what the model before it was measured on. ``beta`` is that of the step; a
    margin is given for the model it made, unless ``beta`` is None: then its rewards are no
    log-ratios. ``probes``: the tables of ``probes/M_k.parquet`` by model name.

    Raises:
        Fault: the table of a model is missing or damaged.
    """
    missing = [f"M_{k}" for k in range(step + 1) if f"M_{k}" not in probes]
    if missing:
        raise Fault(f"gamma of step {step} needs the probes of {', '.join(missing)}")
    models = [split_probes(probes[f"M_{k}"]) for k in range(step + 1)]
    view = _View(
        models=models, step=step, beta=beta, resamples=resamples, seed=seed, sizes=sizes or {}
    )
    return list(view.entries())


def reference_entry(
    probes: Mapping[str, pa.Table],
    *,
    step: int,
    resamples: int,
    seed: int,
    sizes: Mapping[int, int] | None = None,
) -> Entry | None:
    """Return the entry of M_{step-1} on all pairs of D_step that it was measured on, or None.

    Differences to earlier models are over the pairs that those were measured on too: the sample.
    """
    models = [split_probes(probes[f"M_{k}"]) for k in range(step)]
    view = _View(
        models=models, step=step, beta=None, resamples=resamples, seed=seed, sizes=sizes or {}
    )
    probe = f"D_{step}"
    rows = models[step - 1].get(probe)
    if rows is None:
        return None
    return view.entry(step - 1, probe, rows, whole=len(rows) == view.size(probe))


def other_reference_entry(
    reference: pa.Table, base: pa.Table, *, step: int, resamples: int, seed: int
) -> Entry:
    """Return the entry of a reference that is not M_{step-1}, from ``reference.parquet``.

    It covers D_step whole. ``base``: the probes of M_0, for the change from S on the pairs that S
    was measured on. Numbers per token are None for a reference that cuts the text into other
    tokens.
    """
    per_token = reference["chosen_tokens"].null_count == 0
    columns: dict[str, Any] = {
        name: np.asarray(reference[name].to_pylist())
        for name in ("pair_id", "prompt_key", "source", "complete")
    }
    for side in ("chosen", "rejected"):
        columns[f"{side}_logps"] = reference[f"reference_{side}_logps"].to_numpy().astype(float)
        counts = reference[f"{side}_tokens"]
        columns[f"{side}_tokens"] = counts.to_numpy() if per_token else np.ones(len(reference))
    rows = Measured(sampled=np.ones(len(reference), dtype=np.bool_), **columns)
    options: dict[str, int] = {"resamples": resamples, "seed": seed}
    gamma = np.stack([rows.gamma, rows.gamma > 0], axis=1)
    mean, accuracy = _intervals(gamma, rows.prompt_key, **options)
    found = statistics(rows)
    if not per_token:
        found |= {"per_token_mean": None, "length_correlation": None}
    start = split_probes(base).get(f"D_{step}")
    return {
        "probe": f"D_{step}",
        "whole": True,
        **found,
        "mean_low": mean[0],
        "mean_high": mean[1],
        "ranking_accuracy_low": accuracy[0],
        "ranking_accuracy_high": accuracy[1],
        "truncated_share": _mean(~rows.complete),
        "vs_S": start and paired_difference(rows, start, **options),
    }


def contamination(
    probes: Mapping[str, pa.Table], *, step: int, model: int, resamples: int, seed: int
) -> Entry | None:
    """Return how much more M_model moved away from S on D_step than on the sources' reserve.

    With d = gamma under M_model - gamma under S, ``gap`` = mean d(D_step) - mean d(reserve), both
    over D_step's mixture of sources, with an interval that resamples prompts within sources. For
    model = step - 1, before the step trained on D_step, it should be near 0: ``warning`` where the
    interval is above 0 and the gap exceeds max(5 nats, mean d(reserve)). For model >= step it is
    the fit gap: expected, never a warning. Sources without a reserve are left out. None where
    nothing can be said: model 0 is S itself, or no source of D_step has a sample and a reserve.
    """
    if model == 0:
        return None
    base, moved = split_probes(probes["M_0"]), split_probes(probes[f"M_{model}"])
    trained, reserve = _moves(base, moved, f"D_{step}"), _reserve_moves(base, moved)
    sources = sorted(set(trained) & set(reserve))
    if not sources:
        return None
    counts = np.array([len(trained[source][0]) for source in sources], dtype=np.float64)
    mixture = {source: float(c / counts.sum()) for source, c in zip(sources, counts, strict=True)}
    on_trained, drawn_trained = _mix(trained, mixture, resamples=resamples, seed=[seed, 1])
    on_reserve, drawn_reserve = _mix(reserve, mixture, resamples=resamples, seed=[seed, 2])
    gap, share_above_gap = (on_trained - on_reserve).tolist()
    low, high = _bounds((drawn_trained - drawn_reserve)[:, 0])
    reserve_mean = float(on_reserve[0])
    before = model < step
    return {
        "step": step,
        "model": f"M_{model}",
        "before_training": before,
        "pairs": int(counts.sum()),
        "reserve_pairs": sum(len(reserve[source][0]) for source in sources),
        "mean": float(on_trained[0]),
        "reserve_mean": reserve_mean,
        "gap": gap,
        "low": low,
        "high": high,
        "share_above_gap": share_above_gap,
        "warning": bool(
            before and low is not None and low > 0 and gap > max(CONTAMINATION_NATS, reserve_mean)
        ),
    }


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A view holds the tables of M_0, M_1, ... and describes them as entries."""

    models: list[dict[str, Measured]]
    step: int
    beta: float | None
    resamples: int
    seed: int
    sizes: Mapping[int, int]

    def entries(self) -> Iterator[Entry]:
        reference = self.models[self.step - 1].get(f"D_{self.step}") if self.step else None
        if reference is not None and not reference.sampled.all():
            yield self.entry(self.step - 1, f"D_{self.step}", reference, whole=True)
        for model, measured in enumerate(self.models):
            for probe in sorted(measured, key=_probe_order):
                rows = measured[probe]
                sample = rows.take(rows.sampled)
                if len(sample):
                    whole = probe.startswith(RESERVE) or len(sample) == self.size(probe)
                    yield self.entry(model, probe, sample, whole=whole)

    def size(self, probe: str) -> int | None:
        """Return the pairs of a partition; if unknown, what the model before was measured on."""
        before = int(probe.removeprefix("D_")) - 1
        if before + 1 in self.sizes:
            return self.sizes[before + 1]
        return len(self.models[before][probe]) if before < len(self.models) else None

    def entry(self, model: int, probe: str, rows: Measured, *, whole: bool) -> Entry:
        options: dict[str, int] = {"resamples": self.resamples, "seed": self.seed}
        beta = self.beta if model == self.step else None
        previous = start = None
        if model:
            previous = paired_difference(rows, self.models[model - 1][probe], beta=beta, **options)
            start = paired_difference(rows, self.models[0][probe], beta=beta, **options)
        columns = np.stack([rows.gamma, rows.gamma > 0], axis=1)
        mean, accuracy = _intervals(columns, rows.prompt_key, **options)
        return {
            "model": f"M_{model}",
            "probe": probe,
            "whole": whole,
            "prompts": len(np.unique(rows.prompt_key)),
            **statistics(rows),
            "mean_low": mean[0],
            "mean_high": mean[1],
            "ranking_accuracy_low": accuracy[0],
            "ranking_accuracy_high": accuracy[1],
            "truncated_share": _mean(~rows.complete),
            "complete": statistics(rows.take(rows.complete)),
            "vs_previous": previous,
            "vs_S": start,
            "accuracy_vs_previous": previous and previous["accuracy"],
            "accuracy_vs_S": start and start["accuracy"],
        }


def _probe_order(probe: str) -> tuple[int, int, str]:
    """Return the key that sorts reserves first, by name, and then partitions by number."""
    if probe.startswith(RESERVE):
        return (0, 0, probe)
    return (1, int(probe.removeprefix("D_")), "")


Moves = dict[str, tuple[Floats, NDArray[np.str_]]]
"""Per source: d of each pair against S, and its prompt."""


def _moves(base: dict[str, Measured], moved: dict[str, Measured], probe: str) -> Moves:
    """Return d on the pairs of a probe that both models were measured on, by source."""
    if probe not in base or probe not in moved:
        return {}
    _, first, second = np.intersect1d(
        base[probe].pair_id, moved[probe].pair_id, assume_unique=True, return_indices=True
    )
    rows = moved[probe].take(second)
    change = rows.gamma - base[probe].gamma[first]
    return {
        str(source): (change[rows.source == source], rows.prompt_key[rows.source == source])
        for source in np.unique(rows.source)
    }


def _reserve_moves(base: dict[str, Measured], moved: dict[str, Measured]) -> Moves:
    moves: Moves = {}
    for probe in moved:
        if probe.startswith(RESERVE):
            moves |= _moves(base, moved, probe)
    return moves


def _mix(
    moves: Moves, mixture: Mapping[str, float], *, resamples: int, seed: list[int]
) -> tuple[Floats, Floats]:
    """Return (mean d, share d > 0) ``[2]`` over a mixture of sources, and its resamples.

    The resamples are ``[resamples, 2]``.

    They are NaN where a source has one prompt. Sources are weighted, not pooled: where a model
    moves more on one source than on another, a reserve with another mixture than D_t would look
    like contamination.
    """
    mean, drawn = np.zeros(2), np.zeros((resamples, 2))
    for number, (source, share) in enumerate(mixture.items()):
        change, prompts = moves[source]
        values = np.stack([change, change > 0], axis=1)
        mean += share * values.mean(axis=0)
        means = bootstrap_means(values, prompts, resamples=resamples, seed=[*seed, number])
        drawn += np.nan if means is None else share * means
    return mean, drawn


def _intervals(
    values: Floats, prompts: NDArray[np.str_], *, resamples: int, seed: int
) -> list[tuple[float | None, float | None]]:
    """Return a 95% interval of the mean of each column of ``values``."""
    means = bootstrap_means(values, prompts, resamples=resamples, seed=seed)
    return [_bounds(None if means is None else means[:, k]) for k in range(values.shape[1])]


def _bounds(resampled: Floats | None) -> tuple[float | None, float | None]:
    if resampled is None or np.isnan(resampled).any():
        return None, None
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _correlation(first: Floats, second: Floats) -> float | None:
    """Return Pearson's correlation; None where a side does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
