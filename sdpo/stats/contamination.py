"""Tell whether a model has seen what it is about to be trained on: the contamination test."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sdpo.stats.bootstrap import Floats, bootstrap_means, bounds
from sdpo.stats.gamma import RESERVE, Measured, split_probes
from sdpo.stats.gamma_rows import Contamination

CONTAMINATION_NATS = 5.0
"""A gap below this is never called contamination, however narrow its interval."""


def contamination(
    probes: Mapping[str, pa.Table], *, step: int, model: int, resamples: int, seed: int
) -> Contamination | None:
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
    low, high = bounds((drawn_trained - drawn_reserve)[:, 0])
    reserve_mean = float(on_reserve[0])
    before = model < step
    return Contamination(
        step=step,
        model=f"M_{model}",
        before_training=before,
        pairs=int(counts.sum()),
        reserve_pairs=sum(len(reserve[source][0]) for source in sources),
        mean=float(on_trained[0]),
        reserve_mean=reserve_mean,
        gap=gap,
        low=low,
        high=high,
        share_above_gap=share_above_gap,
        warning=bool(
            before and low is not None and low > 0 and gap > max(CONTAMINATION_NATS, reserve_mean)
        ),
    )


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
