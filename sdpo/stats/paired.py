"""Compare two models' scores document by document: a paired difference with its interval.

Documents are joined on the hashes of document and prompt, so that only equal questions count. The
interval is a 95% percentile bootstrap that resamples documents; a mean of several tasks resamples
the documents of all of them together, each with the weight that it has in the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdpo.stats.bootstrap import Floats, intervals
from sdpo.stats.health import Interval


@dataclass(frozen=True, slots=True)
class Scores:
    """The ``values`` ``[n]`` of documents, by keys that are equal for equal questions."""

    keys: NDArray[np.str_]
    values: Floats


@dataclass(frozen=True, slots=True)
class Part:
    """A task counts with ``weight`` in a mean, with the scores of both models."""

    weight: float
    now: Scores
    before: Scores


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of two models on ``documents`` that both were asked alike.

    ``alone`` documents were asked of one of them only, or with another prompt.
    """

    change: Interval
    documents: int
    alone: int


def numbered(keys: Sequence[str]) -> NDArray[np.str_]:
    """Return keys that differ where one key stands more than once: its first, its second."""
    seen: dict[str, int] = {}
    found = []
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        found.append(f"{key}#{seen[key]}")
    return np.array(found, dtype=np.str_)


def paired(parts: Sequence[Part], *, resamples: int, seed: int) -> Difference | None:
    """Return the difference of a weighted mean of tasks; None where a task has no document of both.

    The weights are those of the tasks' means, and add up to 1.
    """
    differences: list[Floats] = []
    names: list[NDArray[np.str_]] = []
    alone = 0
    for number, part in enumerate(parts):
        both, mine, theirs = np.intersect1d(
            part.now.keys, part.before.keys, assume_unique=True, return_indices=True
        )
        if not len(both):
            return None
        alone += len(part.now.keys) + len(part.before.keys) - 2 * len(both)
        differences.append(part.now.values[mine] - part.before.values[theirs])
        names.append(np.array([f"{number}:{key}" for key in both], dtype=np.str_))
    total = sum(map(len, differences))
    # So scaled, the mean over all documents is the weighted mean of the tasks' means.
    values = np.concatenate(
        [d * (part.weight * total / len(d)) for d, part in zip(differences, parts, strict=True)]
    )
    ((low, high),) = intervals(
        values[:, None], np.concatenate(names), resamples=resamples, seed=seed
    )
    return Difference(
        change=Interval(mean=float(values.mean()), low=low, high=high),
        documents=total,
        alone=alone,
    )
