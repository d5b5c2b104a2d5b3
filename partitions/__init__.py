"""Which preference pair goes to which step, and which pairs are reserved.

Decisions are made on columns (ids, source, strata, measured features), with numpy alone: no text
is read here, and nothing is measured. They depend on the pairs' ids and the settings, never on the
order of rows. A module imports only what stands above it in this list:

- ``errors``: :class:`PartitionError`, whose message says what to change
- ``pairs``: the columns, ids in memory, orders that depend on ids alone
- ``registry``: the settings, what a strategy is, the strategies there are
- ``draw``: seeded draws of fractions within strata
- ``natural``, ``stratified``, ``random_``, ``single``, ``curriculum``: the strategies
- ``plan``: the checked plan and its digests; prompts that occur in several steps
- ``reserve``: pairs set aside before anything is trained

A further strategy is one more file with a :class:`Strategy`, and its :func:`register` below.
"""

from partitions.curriculum import LENGTH, REFERENCE_MARGIN, SCORE_GAP
from partitions.errors import PartitionError
from partitions.natural import NATURAL
from partitions.pairs import (
    Pairs,
    argsort_ids,
    ids_from_hex,
    ids_to_bytes,
    ids_to_hex,
    ordering_key,
)
from partitions.plan import Overlap, Plan, StepPlan, extend_plan, make_plan, prompt_overlap
from partitions.random_ import RANDOM
from partitions.registry import Assignment, PartitionSettings, Strategy, get, names, register
from partitions.reserve import reserve_mask, reserve_size
from partitions.single import SINGLE
from partitions.stratified import STRATIFIED

for _strategy in (NATURAL, STRATIFIED, RANDOM, SINGLE, SCORE_GAP, REFERENCE_MARGIN, LENGTH):
    register(_strategy)

__all__ = [
    "Assignment",
    "Overlap",
    "Pairs",
    "PartitionError",
    "PartitionSettings",
    "Plan",
    "StepPlan",
    "Strategy",
    "argsort_ids",
    "extend_plan",
    "get",
    "ids_from_hex",
    "ids_to_bytes",
    "ids_to_hex",
    "make_plan",
    "names",
    "ordering_key",
    "prompt_overlap",
    "register",
    "reserve_mask",
    "reserve_size",
]
