"""Decide which preference pair goes to which step, and which pairs are reserved.

Decisions are made on columns (ids, source, strata, measured features), with numpy alone: no text
is read here, and nothing is measured. They depend on the pairs' ids and the settings, never on the
order of rows. A module imports only what stands above it in this list:

- ``errors``: :class:`PartitionError`, whose message says what to change
- ``pairs``: the columns, ids in memory, orders that depend on ids alone
- ``strategy``: the settings, what a strategy is, the strategies there are
- ``draw``: seeded draws of fractions within strata
- ``strategies``: ``natural``, ``stratified``, ``random``, ``single``, ``curriculum``
- ``plan``: the checked plan and its digests; prompts that occur in several steps
- ``reserve``: pairs set aside before anything is trained

A further strategy is one more file there with a :class:`Strategy`. One of another package is made
known by :func:`register`.
"""

from partitions.errors import PartitionError
from partitions.pairs import (
    Pairs,
    argsort_ids,
    ids_from_hex,
    ids_to_bytes,
    ids_to_hex,
    ordering_key,
)
from partitions.plan import (
    Overlap,
    Plan,
    StepPlan,
    extend_plan,
    in_order,
    make_plan,
    prompt_overlap,
)
from partitions.reserve import most_reserved, reserve_mask, reserve_size
from partitions.strategies import defined
from partitions.strategy import Assignment, PartitionSettings, Strategy, get, names, register

for _strategy in defined():
    register(_strategy)

OWN = names()
"""These strategies are the project's own, not those of another package."""

__all__ = [
    "OWN",
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
    "in_order",
    "make_plan",
    "most_reserved",
    "names",
    "ordering_key",
    "prompt_overlap",
    "register",
    "reserve_mask",
    "reserve_size",
]
