"""The natural partition: each step is one source of pairs, or a named group of sources.

The order of steps is the recipe's, easy first, or hard first. Easy first is the rule of sDPO's
second version (arXiv 2403.19270v2), which sorts sources by reward accuracy under M_0, highest
first. At M_0 policy and reference are the same model and the implicit reward is zero everywhere, so
the accuracy is read as the share of pairs whose log-prob margin gamma_S is above 0.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from partitions.errors import PartitionError
from partitions.pairs import Pairs
from partitions.strategy import Assignment, PartitionSettings, Strategy, unknown

Group = tuple[str, ...]


def _needs(settings: PartitionSettings) -> frozenset[str]:
    return frozenset(() if settings.order == "given" else {"gamma"})


def _assign(pairs: Pairs, settings: PartitionSettings) -> Assignment:
    groups = settings.groups or tuple((name,) for name in pairs.source_names)
    _check_groups(groups, pairs.source_names)
    measured = {}
    if settings.order != "given":
        sign = -1 if settings.order == "easy_first" else 1
        shares = _shares_above_zero(pairs, groups)
        groups = tuple(sorted(groups, key=lambda group: sign * shares[group]))
        measured = {"share_gamma_above_0": {_title(group): shares[group] for group in groups}}
    return Assignment(
        step_of=_group_of_source(pairs, groups)[pairs.source] + np.int32(1),
        contents=tuple(f"source {_title(group)}" for group in groups),
        measured=measured,
    )


def _check_groups(groups: tuple[Group, ...], sources: tuple[str, ...]) -> None:
    """Every source exactly once, and nothing else."""
    named = Counter(name for group in groups for name in group)
    for name in named:
        if name not in sources:
            raise PartitionError(f"partition.groups: source {unknown(name, sources)}")
    if repeated := [name for name, times in named.items() if times > 1]:
        raise PartitionError(
            f"partition.groups names {', '.join(repeated)} more than once: a source belongs to "
            "one step"
        )
    if missing := [name for name in sources if name not in named]:
        raise PartitionError(
            f"partition.groups leaves out {', '.join(missing)}: add each to a group, or take it "
            "out of data.sources"
        )
    if () in groups:
        raise PartitionError(
            f"partition.groups: group {groups.index(()) + 1} names no source: fill or remove it"
        )


def _group_of_source(pairs: Pairs, groups: tuple[Group, ...]) -> NDArray[np.int32]:
    """int32[sources]: the position of each source's group."""
    position = {name: i for i, group in enumerate(groups) for name in group}
    return np.array([position[name] for name in pairs.source_names], dtype=np.int32)


def _shares_above_zero(pairs: Pairs, groups: tuple[Group, ...]) -> dict[Group, float]:
    """Share of each group's pairs with gamma > 0; 0 for a group without pairs."""
    gamma = pairs.features["gamma"]
    if unmeasured := np.count_nonzero(~np.isfinite(gamma)):
        codes = np.unique(pairs.source[~np.isfinite(gamma)])
        raise PartitionError(
            f"{unmeasured} of {len(pairs)} pairs have no finite gamma (sources "
            f"{', '.join(pairs.source_names[code] for code in codes)}): measure gamma under M_0 "
            "for every pair, or set partition.order to `given`"
        )
    group_of = _group_of_source(pairs, groups)[pairs.source]
    total = np.bincount(group_of, minlength=len(groups))
    above = np.bincount(group_of[gamma > 0], minlength=len(groups))
    return {group: float(above[i]) / max(int(total[i]), 1) for i, group in enumerate(groups)}


def _title(group: Group) -> str:
    return " + ".join(group)


NATURAL = Strategy(
    name="natural",
    description="one source per step, or named groups of sources",
    uses=frozenset({"order", "groups"}),
    when_empty="add pairs to it, take it out of data.sources, or join it to another source's step "
    "with partition.groups",
    needs=_needs,
    assign=_assign,
)
