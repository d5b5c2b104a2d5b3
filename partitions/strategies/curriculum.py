"""Make curricula: steps of rising or falling difficulty, cut at quantiles of one measured feature.

All pairs are put in one order by the feature, easy first or hard first, and cut into
``settings.fractions``. Each strategy has its own meaning of easy:

- ``score_gap``: a large difference of the two ratings (Curri-DPO, arXiv 2403.07230).
- ``reference_margin``: a large log-prob margin gamma under M_0, summed or per token: what sDPO's
  second version (arXiv 2403.19270v2) does with whole sources, for single pairs.
- ``length``: few tokens.

Pairs of equal value are ordered by their ids, so the cut is the same whatever the order of rows.
A pair whose feature is unknown is refused, not put last: to place it among the hardest pairs would
be a claim that nobody measured.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from partitions.draw import normalised, step_sizes
from partitions.errors import PartitionError
from partitions.pairs import Floats, Pairs, argsort_ids
from partitions.strategy import Assignment, PartitionSettings, Strategy


def _cut(
    pairs: Pairs, settings: PartitionSettings, *, feature: str, large_is_easy: bool, without: str
) -> Assignment:
    """Cut at equal-count quantiles of ``feature``; ``without`` is the remedy where it is
    unknown."""
    fractions = normalised(settings.fractions)
    values = pairs.features[feature]
    _refuse_unknown(pairs, values, feature=feature, without=without)
    easy_first = settings.order != "hard_first"
    by_id = argsort_ids(pairs.ids)
    key = -values if large_is_easy == easy_first else values
    order = by_id[np.argsort(key[by_id], kind="stable")]
    counts = step_sizes([len(pairs)], fractions)[0]
    step_of = np.empty(len(pairs), dtype=np.int32)
    step_of[order] = np.repeat(np.arange(1, len(counts) + 1, dtype=np.int32), counts)
    parts = np.split(values[order], np.cumsum(counts)[:-1])
    name = feature.replace("_", " ")
    return Assignment(
        step_of=step_of,
        contents=tuple(f"{name} {_range(part)}" for part in parts),
        measured=_summaries(parts),
    )


def _refuse_unknown(pairs: Pairs, values: Floats, *, feature: str, without: str) -> None:
    unknown = ~np.isfinite(values)
    if not unknown.any():
        return
    counts = np.bincount(pairs.source[unknown], minlength=len(pairs.source_names))
    listed = ", ".join(
        f"{name} {count}" for name, count in zip(pairs.source_names, counts, strict=True) if count
    )
    raise PartitionError(
        f"{int(unknown.sum())} of {len(pairs)} pairs have no {feature} ({listed}): {without}"
    )


def _range(values: Floats) -> str:
    """Describe a step from its first to its last value; an empty step, refused later, has none."""
    return f"{values[0]:.4g} to {values[-1]:.4g}" if len(values) else "(none)"


def _summaries(parts: list[NDArray[np.floating]]) -> Mapping[str, Mapping[str, float]]:
    """Return the least, mean and greatest value of every step."""
    return {
        f"D_{step}": {
            "least": float(part.min()),
            "mean": float(part.mean()),
            "greatest": float(part.max()),
        }
        for step, part in enumerate(parts, 1)
        if len(part)
    }


def _score_gap(pairs: Pairs, settings: PartitionSettings) -> Assignment:
    return _cut(
        pairs,
        settings,
        feature="score_gap",
        large_is_easy=True,
        without="name the columns of the scores (data.sources[].columns.chosen_score and "
        "rejected_score), take these sources out of data.sources, or use another strategy",
    )


def _margin_feature(settings: PartitionSettings) -> str:
    return "gamma_per_token" if settings.per_token else "gamma"


def _reference_margin(pairs: Pairs, settings: PartitionSettings) -> Assignment:
    return _cut(
        pairs,
        settings,
        feature=_margin_feature(settings),
        large_is_easy=True,
        without="measure every pair under M_0",
    )


def _length(pairs: Pairs, settings: PartitionSettings) -> Assignment:
    return _cut(
        pairs, settings, feature="length", large_is_easy=False, without="measure every pair"
    )


_SHARES = frozenset({"fractions", "order"})
_WHEN_EMPTY = "raise its share in partition.fractions, or add pairs"

SCORE_GAP = Strategy(
    name="score_gap",
    description="quantiles of the rating difference, large gaps first",
    uses=_SHARES,
    when_empty=_WHEN_EMPTY,
    needs=lambda settings: frozenset({"score_gap"}),
    assign=_score_gap,
)
REFERENCE_MARGIN = Strategy(
    name="reference_margin",
    description="quantiles of gamma under M_0, large margins first",
    uses=_SHARES | {"per_token"},
    when_empty=_WHEN_EMPTY,
    needs=lambda settings: frozenset({_margin_feature(settings)}),
    assign=_reference_margin,
)
LENGTH = Strategy(
    name="length",
    description="quantiles of a pair's length, short pairs first",
    uses=_SHARES,
    when_empty=_WHEN_EMPTY,
    needs=lambda settings: frozenset({"length"}),
    assign=_length,
)
