"""Make the stratified partition: each step gets its fraction, drawn within strata.

Every step has the same mix of sources, and of the values of any further column, to within one pair
per stratum. With the default fractions this is the control of the sDPO paper (arXiv 2403.19270v1).
"""

from partitions.draw import draw_fractions
from partitions.pairs import Pairs
from partitions.strategy import Assignment, PartitionSettings, Strategy


def _assign(pairs: Pairs, settings: PartitionSettings) -> Assignment:
    return draw_fractions(pairs, settings, strata=settings.strata)


STRATIFIED = Strategy(
    name="stratified",
    description="fractions per step, drawn within strata (source, and any further column)",
    uses=frozenset({"fractions", "strata", "seed"}),
    when_empty="raise its share in partition.fractions, or add pairs",
    assign=_assign,
)
