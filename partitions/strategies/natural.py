"""Make the natural partition: each step is one source of pairs, or a named group of sources.

A source that several groups name is trained on in each of their steps.

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
    rows, step_of = _entries(pairs, groups)
    return Assignment(
        step_of=step_of,
        rows=rows,
        contents=tuple(f"source {_title(group)}" for group in groups),
        measured=measured,
    )


def _check_groups(groups: tuple[Group, ...], sources: tuple[str, ...]) -> None:
    """Refuse groups that leave a source out, name one twice in a group, or name an unknown one."""
    named = {name for group in groups for name in group}
    for name in named:
        if name not in sources:
            raise PartitionError(f"partition.groups: source {unknown(name, sources)}")
    for number, group in enumerate(groups, 1):
        if repeated := [name for name, times in Counter(group).items() if times > 1]:
            raise PartitionError(
                f"partition.groups: group {number} names {', '.join(repeated)} more than once: "
                "name a source once in a group (and in several groups to train on it in each)"
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


def _entries(
    pairs: Pairs, groups: tuple[Group, ...]
) -> tuple[NDArray[np.intp] | None, NDArray[np.int32]]:
    """Return pair and step of every entry; no rows where each pair has one entry."""
    if sum(map(len, groups)) == len(pairs.source_names):
        position = {name: step for step, group in enumerate(groups, 1) for name in group}
        of_source = np.array([position[name] for name in pairs.source_names], dtype=np.int32)
        return None, of_source[pairs.source]
    code = {name: i for i, name in enumerate(pairs.source_names)}
    members = [
        np.flatnonzero(np.isin(pairs.source, [code[name] for name in group])) for group in groups
    ]
    steps = np.arange(1, len(groups) + 1, dtype=np.int32)
    return np.concatenate(members), np.repeat(steps, [len(rows) for rows in members])


def _shares_above_zero(pairs: Pairs, groups: tuple[Group, ...]) -> dict[Group, float]:
    """Return the share of each group's pairs with gamma > 0; 0 for a group without pairs."""
    gamma = pairs.features["gamma"]
    if unmeasured := np.count_nonzero(~np.isfinite(gamma)):
        codes = np.unique(pairs.source[~np.isfinite(gamma)])
        raise PartitionError(
            f"{unmeasured} of {len(pairs)} pairs have no finite gamma (sources "
            f"{', '.join(pairs.source_names[code] for code in codes)}): measure gamma under M_0 "
            "for every pair, or set partition.order to `given`"
        )
    rows, step_of = _entries(pairs, groups)
    total = np.bincount(step_of, minlength=len(groups) + 1)[1:]
    is_above = gamma > 0 if rows is None else gamma[rows] > 0
    above = np.bincount(step_of[is_above], minlength=len(groups) + 1)[1:]
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
