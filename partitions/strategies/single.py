"""Make the single partition: all pairs are in one step, as plain DPO trains on them."""

import numpy as np

from partitions.pairs import Pairs
from partitions.strategy import Assignment, PartitionSettings, Strategy


def _assign(pairs: Pairs, settings: PartitionSettings) -> Assignment:
    return Assignment(np.ones(len(pairs), dtype=np.int32), ("all pairs",))


SINGLE = Strategy(
    name="single",
    description="everything at once, in one step: plain DPO",
    uses=frozenset(),
    when_empty="add pairs",
    assign=_assign,
)
