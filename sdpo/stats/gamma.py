"""Compute statistics of gamma_ref: what a model prefers, and how that differs between models.

gamma_M(x) = log M(chosen|x) - log M(rejected|x), raw sums in nats (sDPO, arXiv 2403.19270, section
3.2). This module owns the numbers in ``gamma.json``; it takes tables of measured log-probs and
neither reads nor writes a file. Where a number cannot be had (no pairs, one prompt) it is None,
never NaN. Intervals are those of :mod:`sdpo.stats.bootstrap`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sdpo.errors import Fault
from sdpo.stats.bootstrap import Floats, intervals, mean_of
from sdpo.stats.gamma_rows import Difference, GammaRow, ProbeRow, Statistics

QUANTILES = (1, 5, 25, 50, 75, 95, 99)
RESERVE = "reserve:"
"""Prefix of the probe names that are a source's reserve."""


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


def whole_reserve(table: pa.Table) -> Measured | None:
    """Return a model's measurements on the reserves of all sources together, by pair id.

    ``table``: as of :func:`split_probes`. None where there is no reserve.
    """
    reserve = table.filter(pc.starts_with(table["probe"], RESERVE))
    together = pa.array([RESERVE] * len(reserve), pa.string())
    column = reserve.schema.get_field_index("probe")
    return split_probes(reserve.set_column(column, "probe", together)).get(RESERVE)


def statistics(rows: Measured) -> Statistics:
    """Return moments, quantiles and accuracy of gamma over ``rows``."""
    gamma, pairs = rows.gamma, len(rows)
    sd = float(gamma.std(ddof=1)) if pairs > 1 else None
    quantiles = np.percentile(gamma, QUANTILES).tolist() if pairs else [None] * len(QUANTILES)
    per_token = rows.chosen_logps / rows.chosen_tokens - rows.rejected_logps / rows.rejected_tokens
    return Statistics(
        pairs=pairs,
        mean=mean_of(gamma),
        sd=sd,
        se=None if sd is None else sd / pairs**0.5,
        quantiles={str(q): value for q, value in zip(QUANTILES, quantiles, strict=True)},
        ranking_accuracy=mean_of(gamma > 0),
        per_token_mean=mean_of(per_token),
        length_correlation=_correlation(
            gamma, rows.chosen_tokens.astype(np.float64) - rows.rejected_tokens
        ),
    )


def paired_difference(
    now: Measured, earlier: Measured, *, resamples: int, seed: int, beta: float | None = None
) -> Difference:
    """Return d = gamma now - gamma earlier on the pairs that both have, with its interval.

    ``margin`` = beta * mean(d): the trainer's rewards/margins where ``earlier`` is its reference.
    ``ranking_accuracy_change`` is the difference of the two ranking accuracies.
    """
    _, mine, theirs = np.intersect1d(
        now.pair_id, earlier.pair_id, assume_unique=True, return_indices=True
    )
    rows, gamma = now.take(mine), now.gamma[mine]
    before = earlier.gamma[theirs]
    change = gamma - before
    correct = (gamma > 0).astype(np.float64) - (before > 0)
    (low, high), (correct_low, correct_high) = intervals(
        np.stack([change, correct], axis=1), rows.prompt_key, resamples=resamples, seed=seed
    )
    mean = mean_of(change)
    return Difference(
        pairs=len(rows),
        mean=mean,
        low=low,
        high=high,
        share_above=mean_of(change > 0),
        accuracy=mean_of((change > 0) + 0.5 * (change == 0)),
        margin=None if beta is None or mean is None else beta * mean,
        ranking_accuracy_change=mean_of(correct),
        ranking_accuracy_change_low=correct_low,
        ranking_accuracy_change_high=correct_high,
    )


def gamma_view(
    probes: Mapping[str, pa.Table],
    *,
    step: int,
    beta: float | None,
    resamples: int,
    seed: int,
    sizes: Mapping[int, int] | None = None,
) -> list[GammaRow]:
    """Return the rows of ``step-<step>/gamma.json``: M_0..M_step on every probe.

    First comes M_{step-1} on D_step whole (the reference that the step trained with); then every
    model on the reserve of every source and on the sample of every partition. ``whole`` says that
    the row covers the reserve or the partition entirely; ``sizes`` are the pairs of each
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
    return list(view.rows())


def reference_entry(
    probes: Mapping[str, pa.Table],
    *,
    step: int,
    resamples: int,
    seed: int,
    sizes: Mapping[int, int] | None = None,
) -> GammaRow | None:
    """Return the row of M_{step-1} on all pairs of D_step that it was measured on, or None.

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
    return view.row(step - 1, probe, rows, whole=len(rows) == view.size(probe))


def other_reference_entry(
    reference: pa.Table, base: pa.Table, *, step: int, resamples: int, seed: int
) -> ProbeRow:
    """Return the row of a reference that is not M_{step-1}, from ``reference.parquet``.

    It covers D_step whole. ``base``: the probes of M_0, for the change from S on the pairs that S
    was measured on. Numbers per token are None for a reference that cuts the text into other
    tokens.
    """
    per_token = reference["chosen_tokens"].null_count == 0
    columns: dict[str, np.ndarray] = {
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
    mean, accuracy = intervals(gamma, rows.prompt_key, **options)
    found = statistics(rows)
    if not per_token:
        found = found.model_copy(update={"per_token_mean": None, "length_correlation": None})
    start = split_probes(base).get(f"D_{step}")
    return ProbeRow(
        probe=f"D_{step}",
        whole=True,
        **dict(found),
        mean_low=mean[0],
        mean_high=mean[1],
        ranking_accuracy_low=accuracy[0],
        ranking_accuracy_high=accuracy[1],
        truncated_share=mean_of(~rows.complete),
        vs_S=None if start is None else paired_difference(rows, start, **options),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A view holds the tables of M_0, M_1, ... and describes them as rows."""

    models: list[dict[str, Measured]]
    step: int
    beta: float | None
    resamples: int
    seed: int
    sizes: Mapping[int, int]

    def rows(self) -> Iterator[GammaRow]:
        reference = self.models[self.step - 1].get(f"D_{self.step}") if self.step else None
        if reference is not None and not reference.sampled.all():
            yield self.row(self.step - 1, f"D_{self.step}", reference, whole=True)
        for model, measured in enumerate(self.models):
            for probe in sorted(measured, key=_probe_order):
                rows = measured[probe]
                sample = rows.take(rows.sampled)
                if len(sample):
                    whole = probe.startswith(RESERVE) or len(sample) == self.size(probe)
                    yield self.row(model, probe, sample, whole=whole)

    def size(self, probe: str) -> int | None:
        """Return the pairs of a partition; if unknown, what the model before was measured on."""
        before = int(probe.removeprefix("D_")) - 1
        if before + 1 in self.sizes:
            return self.sizes[before + 1]
        return len(self.models[before][probe]) if before < len(self.models) else None

    def row(self, model: int, probe: str, rows: Measured, *, whole: bool) -> GammaRow:
        options: dict[str, int] = {"resamples": self.resamples, "seed": self.seed}
        beta = self.beta if model == self.step else None
        previous = start = None
        if model:
            previous = paired_difference(rows, self.models[model - 1][probe], beta=beta, **options)
            start = paired_difference(rows, self.models[0][probe], beta=beta, **options)
        columns = np.stack([rows.gamma, rows.gamma > 0], axis=1)
        mean, accuracy = intervals(columns, rows.prompt_key, **options)
        return GammaRow(
            model=f"M_{model}",
            probe=probe,
            whole=whole,
            prompts=len(np.unique(rows.prompt_key)),
            **dict(statistics(rows)),
            mean_low=mean[0],
            mean_high=mean[1],
            ranking_accuracy_low=accuracy[0],
            ranking_accuracy_high=accuracy[1],
            truncated_share=mean_of(~rows.complete),
            complete=statistics(rows.take(rows.complete)),
            vs_previous=previous,
            vs_S=start,
            accuracy_vs_previous=previous and previous.accuracy,
            accuracy_vs_S=start and start.accuracy,
        )


def _probe_order(probe: str) -> tuple[int, int, str]:
    """Return the key that sorts reserves first, by name, and then partitions by number."""
    if probe.startswith(RESERVE):
        return (0, 0, probe)
    return (1, int(probe.removeprefix("D_")), "")


def _correlation(first: Floats, second: Floats) -> float | None:
    """Return Pearson's correlation; None where a side does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
