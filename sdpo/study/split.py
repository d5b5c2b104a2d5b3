"""Give what of a trial's values selects, or what reports."""

from dataclasses import replace

import numpy as np

from sdpo.stats.reserve_parts import ReservePart, part_of
from sdpo.study.results import PairValues


def split(values: PairValues, part: ReservePart) -> PairValues:
    """Return the pairs of one part; with those that report go the scores that may be reported."""
    rows = np.flatnonzero(part_of(values.prompt_key) == part)
    scores = [each.reported() for each in values.scores] if part == "report" else []
    return replace(values.at(values.pair_id[rows]), scores=scores)
