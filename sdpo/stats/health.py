"""Compute how healthy a chain is: what it keeps, what it makes less likely, how long it writes.

Retention asks whether a later model M_t still prefers what step k had taught, on reserved pairs of
step k's sources (arXiv 2606.19744: an average can hide pairs that changed much, so it is given by
quartile of the margin that M_k had as well). Likelihood displacement is that the chosen answers
become less likely together with the rejected ones, while the difference grows (arXiv 2410.08847).
Lengths are those of completions of the same prompts (arXiv 2406.11817). Everything is read from
what the run has measured anyway; intervals are those of :mod:`sdpo.stats.bootstrap`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo.stats.bootstrap import Floats, intervals
from sdpo.stats.gamma import Measured

QUARTILES = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95% interval; the bounds are None where all rows have one prompt."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What M_``model`` keeps of what M_``step`` preferred, on ``pairs`` reserved pairs.

    ``quartile`` counts from the pairs with the smallest margin; None: all pairs. ``margin`` is the
    mean of gamma under M_step minus gamma under S, ``change`` that of gamma under M_model minus
    gamma under M_step, in nats; ``fell`` is the share of pairs whose gamma fell, ``accuracy`` the
    change of ranking accuracy as a share.
    """

    step: int
    model: int
    quartile: int | None
    pairs: int
    margin: float
    change: Interval
    accuracy: Interval
    fell: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Displacement:
    """How far M_``model`` moved the log-probs of both sides from S, on the pairs of ``probe``.

    ``chosen``, ``rejected`` and ``margin`` are mean changes in nats per completion;
    ``both_fell`` is the share of pairs of which both sides became less likely.
    """

    model: int
    probe: str
    pairs: int
    chosen: Interval
    rejected: Interval
    margin: Interval
    both_fell: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long M_``model`` writes on ``prompts`` prompts, in characters.

    ``change`` is the paired difference from S, None for S itself; ``unfinished`` is the share of
    completions that were cut at their limit, whose lengths are those of the beginning.
    """

    model: int
    prompts: int
    mean: float
    unfinished: float
    change: Interval | None


def retention(
    start: Measured, taught: Measured, later: Measured, *, step: int, model: int, seed: int,
    resamples: int,
) -> list[Retention]:  # fmt: skip
    """Compare M_``model`` (``later``) with M_``step`` (``taught``) on the pairs of all three.

    ``start`` is S. First come all pairs, then the quartiles of M_step's margin over S; of fewer
    than four pairs there are no quartiles, of no pair there is nothing.
    """
    start, taught, later = _same_pairs(start, taught, later)
    if not len(start):
        return []
    margin = taught.gamma - start.gamma
    groups: dict[int | None, NDArray[np.intp]] = {None: np.arange(len(start))}
    if len(start) >= len(QUARTILES):
        ordered = np.argsort(margin, kind="stable")
        parts = np.array_split(ordered, len(QUARTILES))
        groups |= dict(zip(QUARTILES, parts, strict=True))
    found = []
    for quartile, rows in groups.items():
        before, after = taught.take(rows), later.take(rows)
        moved = after.gamma - before.gamma
        ranked = (after.gamma > 0).astype(np.float64) - (before.gamma > 0)
        change, accuracy = _intervals(
            [moved, ranked], before.prompt_key, resamples=resamples, seed=seed
        )
        found.append(
            Retention(
                step=step,
                model=model,
                quartile=quartile,
                pairs=len(rows),
                margin=float(margin[rows].mean()),
                change=change,
                accuracy=accuracy,
                fell=float((moved < 0).mean()),
            )
        )
    return found


def displacement(
    start: Measured, later: Measured, *, model: int, probe: str, resamples: int, seed: int
) -> Displacement | None:
    """Return how log-probs moved from S to M_``model``; None where no pair has both."""
    start, later = _same_pairs(start, later)
    if not len(start):
        return None
    chosen = later.chosen_logps - start.chosen_logps
    rejected = later.rejected_logps - start.rejected_logps
    means = _intervals(
        [chosen, rejected, chosen - rejected], start.prompt_key, resamples=resamples, seed=seed
    )
    return Displacement(
        model=model,
        probe=probe,
        pairs=len(start),
        chosen=means[0],
        rejected=means[1],
        margin=means[2],
        both_fell=float(((chosen < 0) & (rejected < 0)).mean()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A model wrote ``characters`` on the prompt ``prompt_key``; ``finished``: it ended itself."""

    prompt_key: str
    characters: int
    finished: bool


def lengths(
    start: Sequence[Written], later: Sequence[Written], *, model: int, resamples: int, seed: int
) -> Lengths | None:
    """Return the lengths of M_``model``, and their change from S on the prompts of both.

    None where M_``model`` wrote nothing.
    """
    if not later:
        return None
    base: Mapping[str, Written] = {written.prompt_key: written for written in start}
    both = [written for written in later if written.prompt_key in base]
    change = None
    if model and both:
        moved = [float(w.characters - base[w.prompt_key].characters) for w in both]
        keys = np.array([w.prompt_key for w in both], dtype=np.str_)
        (change,) = _intervals([np.array(moved)], keys, resamples=resamples, seed=seed)
    return Lengths(
        model=model,
        prompts=len(later),
        mean=float(np.mean([w.characters for w in later])),
        unfinished=float(np.mean([not w.finished for w in later])),
        change=change,
    )


def _same_pairs(*models: Measured) -> list[Measured]:
    """Return the models' rows of the pairs that all of them have, in the order of pair ids."""
    ids = models[0].pair_id
    for model in models[1:]:
        ids = np.intersect1d(ids, model.pair_id, assume_unique=True)
    return [model.take(np.searchsorted(model.pair_id, ids)) for model in models]


def _intervals(
    columns: Sequence[Floats], prompts: NDArray[np.str_], *, resamples: int, seed: int
) -> list[Interval]:
    found = intervals(np.stack(columns, axis=1), prompts, resamples=resamples, seed=seed)
    return [
        Interval(mean=float(column.mean()), low=low, high=high)
        for column, (low, high) in zip(columns, found, strict=True)
    ]
