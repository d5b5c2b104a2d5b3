"""Make the random partition: fractions of all pairs, as a control for every other strategy."""

from partitions.draw import draw_fractions
from partitions.pairs import Pairs
from partitions.strategy import Assignment, PartitionSettings, Strategy


def _assign(pairs: Pairs, settings: PartitionSettings) -> Assignment:
    return draw_fractions(pairs, settings, strata=())


RANDOM = Strategy(
    name="random",
    description="fractions of everything: the control",
    uses=frozenset({"fractions", "seed"}),
    when_empty="raise its share in partition.fractions, or add pairs",
    assign=_assign,
)
