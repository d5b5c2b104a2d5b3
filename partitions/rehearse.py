"""Mix pairs of earlier steps into later ones, so that what they taught is met again.

This module owns the draw. A plan with rehearsal is the plan without it and more entries: no pair
leaves its step, and a step has its own pairs before it has earlier ones.
"""

import numpy as np
from numpy.typing import NDArray

from partitions.pairs import Ids, argsort_by, ordering_key

_OF_A_STEP = 0x9E3779B97F4A7C15
"""The draw of each step has a seed of its own: the plan's, and so much more for each step."""


def rehearsed(
    ids: Ids,
    rows: NDArray[np.intp],
    step_of: NDArray[np.int32],
    *,
    step: int,
    share: float,
    seed: int,
) -> NDArray[np.intp]:
    """Return the pairs of steps before ``step`` that it is to meet again, intp ascending.

    rows, step_of: intp[m] and int32[m], the entries of the plan without rehearsal. ``share`` of the
    step's own pairs, rounded, are drawn of those that earlier steps have and it has not; fewer
    where there are not so many. The draw depends on ids, seed and step alone.
    """
    own = rows[step_of == step]
    pool = np.setdiff1d(rows[(step_of > 0) & (step_of < step)], own)
    count = min(round(share * len(own)), len(pool))
    keys = ordering_key(ids[pool], (seed + step * _OF_A_STEP) % 2**64)
    return np.sort(pool[argsort_by(keys, ids[pool])[:count]])
