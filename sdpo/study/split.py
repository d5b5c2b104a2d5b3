"""Give the reserved pairs of a trial that select, or those that report."""

import numpy as np

from sdpo.stats.reserve_parts import ReservePart, part_of
from sdpo.study.results import PairValues


def split(values: PairValues, part: ReservePart) -> PairValues:
    """Return the pairs of one part."""
    rows = np.flatnonzero(part_of(values.prompt_key) == part)
    return PairValues(
        values.pair_id[rows], values.prompt_key[rows], values.start[rows], values.gamma[rows]
    )
