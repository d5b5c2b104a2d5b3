"""Make the checked plan of which pair goes to which step, in a form to be stored and explained.

A plan is a table of pair and step. This module owns its invariants, whatever strategy made it:
every pair is in one step at least and in none twice, and no step is empty.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from partitions.errors import PartitionError
from partitions.pairs import Ids, Pairs, argsort_ids, ids_to_bytes, run_starts
from partitions.rehearse import rehearsed
from partitions.strategy import Assignment, PartitionSettings, Strategy, get

_CHUNK = 1 << 20


@dataclass(frozen=True)
class StepPlan:
    """A step of a plan says what it is made of, and has a digest of its pairs.

    step: its number, from 1.
    contents: what the step is made of, in words.
    pairs: number of pairs.
    sources: pairs per source, of the sources that the step has pairs of, in the recipe's order.
    digest: sha256 (hex) over the step's pair ids, ascending, 16 bytes big-endian each.
    """

    step: int
    contents: str
    pairs: int
    sources: Mapping[str, int]
    digest: str


@dataclass(frozen=True, eq=False)
class Plan:
    """A plan is a checked assignment of pairs to steps: a table of pair and step.

    rows: intp[m], the pair of each entry: its row among the pairs.
    step_of: int32[m], the step of each entry, from 1.
    steps: one entry per step, in order.
    measured: summaries of the features that the plan rests on; empty where it rests on none.
    ignored_settings: names of settings that were changed and have no effect on this strategy.
    """

    settings: PartitionSettings
    rows: NDArray[np.intp]
    step_of: NDArray[np.int32]
    steps: tuple[StepPlan, ...]
    measured: Mapping[str, Mapping[str, float]]
    ignored_settings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan without its rows, of JSON types, independent of the rows' order."""
        settings = asdict(self.settings)
        del settings["rehearse"]  # it came later: a plan without it says nothing of it
        return {
            "strategy": settings.pop("strategy"),
            "settings": {
                **settings,
                "groups": [list(group) for group in self.settings.groups],
                "fractions": list(self.settings.fractions),
                "strata": list(self.settings.strata),
                **({"rehearse": self.settings.rehearse} if self.settings.rehearse else {}),
            },
            "ignored_settings": list(self.ignored_settings),
            "measured": {name: dict(values) for name, values in self.measured.items()},
            "pairs": len(np.unique(self.rows)),
            "steps": [asdict(step) for step in self.steps],
        }


def make_plan(pairs: Pairs, settings: PartitionSettings) -> Plan:
    """Assign every pair to a step as ``settings`` say, and check the result.

    Raises :class:`PartitionError` for settings that cannot be followed, a feature that is not
    measured yet (``get(settings.strategy).needs(settings)`` names them), and an empty step.
    """
    strategy = get(settings.strategy)
    if len(pairs) == 0:
        raise PartitionError(
            "there are no pairs to partition: see which rows were not used, and why"
        )
    if missing := strategy.needs(settings) - pairs.features.keys():
        raise PartitionError(
            f"strategy `{strategy.name}` with these settings needs {', '.join(sorted(missing))} "
            "of every pair: measure it under M_0 first"
        )
    assignment = strategy.assign(pairs, settings)
    rows, step_of = _entries(assignment, pairs, strategy)
    counts = _counts(rows, step_of, assignment.contents, pairs, strategy)
    contents = list(assignment.contents)
    if settings.rehearse:
        rows, step_of, contents = _rehearsed(pairs, settings, rows, step_of, contents)
        counts = _counts(rows, step_of, contents, pairs, strategy)
    return Plan(
        settings=settings,
        rows=rows,
        step_of=step_of,
        steps=tuple(
            StepPlan(
                step=step,
                contents=contents[step - 1],
                pairs=int(row.sum()),
                sources={
                    name: int(count)
                    for name, count in zip(pairs.source_names, row, strict=True)
                    if count
                },
                digest=digest,
            )
            for step, (row, digest) in enumerate(
                zip(counts, _digests(pairs.ids[rows], step_of, len(counts)), strict=True), 1
            )
        ),
        measured=assignment.measured,
        ignored_settings=tuple(
            name
            for name in settings.changed()
            if name not in strategy.uses and not (name == "rehearse" and len(contents) > 1)
        ),
    )


def _rehearsed(
    pairs: Pairs,
    settings: PartitionSettings,
    rows: NDArray[np.intp],
    step_of: NDArray[np.int32],
    contents: Sequence[str],
    *,
    steps: Sequence[int] | None = None,
) -> tuple[NDArray[np.intp], NDArray[np.int32], list[str]]:
    """Return entries and contents with the earlier pairs that ``steps`` meet again; all by
    default."""
    all_rows, all_steps, said = [rows], [step_of], list(contents)
    for step in steps or range(2, len(contents) + 1):
        again = rehearsed(
            pairs.ids, rows, step_of, step=step, share=settings.rehearse, seed=settings.seed
        )
        all_rows.append(again)
        all_steps.append(np.full(len(again), step, dtype=np.int32))
        if len(again):
            said[step - 1] += f" + {len(again)} earlier pairs"
    return *in_order(np.concatenate(all_rows), np.concatenate(all_steps)), said


Entries = tuple[NDArray[np.intp], NDArray[np.int32]]
"""Pair and step of every entry, by pair and then by step."""


def _entries(assignment: Assignment, pairs: Pairs, strategy: Strategy) -> Entries:
    """Return the entries of an assignment in which every pair is, and in no step twice."""
    rows, step_of = assignment.rows, assignment.step_of
    due = len(pairs) if rows is None else len(rows)
    if step_of.dtype != np.int32 or step_of.shape != (due,):
        raise PartitionError(
            f"strategy `{strategy.name}` returned {step_of.dtype}{list(step_of.shape)} where "
            f"int32[{due}] was due"
        )
    if rows is None:
        return np.arange(len(pairs)), step_of
    if rows.dtype.kind != "i" or rows.min(initial=0) < 0 or rows.max(initial=0) >= len(pairs):
        raise PartitionError(
            f"strategy `{strategy.name}` names rows that are none of the {len(pairs)} pairs"
        )
    rows, step_of = in_order(rows, step_of)
    if left_out := len(pairs) - len(run_starts(rows)):
        raise PartitionError(
            f"strategy `{strategy.name}` leaves {left_out} of {len(pairs)} pairs without a step"
        )
    if repeated := np.count_nonzero((rows[1:] == rows[:-1]) & (step_of[1:] == step_of[:-1])):
        raise PartitionError(
            f"strategy `{strategy.name}` puts pairs into one step more than once: {repeated}"
        )
    return rows, step_of


def in_order(rows: NDArray[np.intp], step_of: NDArray[np.int32]) -> Entries:
    """Return the entries sorted by pair and then by step."""
    order = np.lexsort((step_of, rows))
    return rows[order], step_of[order]


def _counts(
    rows: NDArray[np.intp],
    step_of: NDArray[np.int32],
    contents: Sequence[str],
    pairs: Pairs,
    strategy: Strategy,
) -> NDArray[np.int64]:
    """Count the pairs per step and source, int64[steps, sources]; refuse a step that has none."""
    n_steps, n_sources = len(contents), len(pairs.source_names)
    if step_of.min() < 1 or step_of.max() > n_steps:
        raise PartitionError(
            f"strategy `{strategy.name}` made {n_steps} steps but assigned pairs to steps "
            f"{step_of.min()} to {step_of.max()}"
        )
    cell = (step_of - np.int32(1)) * np.int64(n_sources) + pairs.source[rows]
    counts = np.bincount(cell, minlength=n_steps * n_sources).reshape(n_steps, n_sources)
    for step in np.flatnonzero(counts.sum(axis=1) == 0) + 1:
        raise PartitionError(
            f"step {step} ({contents[int(step) - 1]}) has none of the {len(pairs)} pairs: "
            f"{strategy.when_empty}"
        )
    return counts


def _by_source(pairs: Pairs, rows: NDArray[np.intp]) -> dict[str, int]:
    """Count the pairs of each source that has some of ``rows``, in the recipe's order."""
    counts = np.bincount(pairs.source[rows], minlength=len(pairs.source_names))
    return {name: int(n) for name, n in zip(pairs.source_names, counts, strict=True) if n}


def _digests(ids: Ids, step_of: NDArray[np.int32], n_steps: int) -> list[str]:
    """Return sha256 (hex) over the sorted ids of each step."""
    order = argsort_ids(ids)
    digests = []
    for step in range(1, n_steps + 1):
        rows = order[step_of[order] == step]
        sha = hashlib.sha256()
        for start in range(0, len(rows), _CHUNK):
            sha.update(ids_to_bytes(ids[rows[start : start + _CHUNK]]))
        digests.append(sha.hexdigest())
    return digests


class Overlap(TypedDict):
    """An overlap counts the prompts that occur in exactly these steps, and the pairs that have
    them."""

    steps: list[int]
    prompts: int
    pairs: int


def prompt_overlap(prompt_ids: Ids, step_of: NDArray[np.int32]) -> list[Overlap]:
    """Count the prompts that occur in more than one partition, by the steps they occur in.

    prompt_ids: uint64[n, 2], the id of each pair's prompt. step_of: int32[n], from 1.
    """
    if len(prompt_ids) == 0:
        return []
    order = argsort_ids(prompt_ids)
    starts = run_starts(prompt_ids[order])
    steps = step_of[order]
    repeats = np.diff(starts, append=len(order))
    # Only prompts in several steps go on: in most data they are few.
    spread = np.minimum.reduceat(steps, starts) != np.maximum.reduceat(steps, starts)
    if not spread.any():
        return []
    steps = steps[np.repeat(spread, repeats)]
    pairs_of_prompt = repeats[spread]
    occurs = np.zeros((len(pairs_of_prompt), int(step_of.max())), dtype=bool)
    occurs[np.repeat(np.arange(len(pairs_of_prompt)), pairs_of_prompt), steps - 1] = True
    patterns, pattern_of = np.unique(occurs, axis=0, return_inverse=True)
    prompts = np.bincount(pattern_of, minlength=len(patterns))
    pairs = np.bincount(pattern_of, weights=pairs_of_prompt, minlength=len(patterns))
    overlaps = [
        Overlap(steps=(np.flatnonzero(pattern) + 1).tolist(), prompts=int(k), pairs=int(m))
        for pattern, k, m in zip(patterns, prompts, pairs, strict=True)
    ]
    return sorted(overlaps, key=lambda overlap: overlap["steps"])


def extend_plan(
    pairs: Pairs,
    settings: PartitionSettings,
    *,
    carried_rows: NDArray[np.intp],
    carried_step: NDArray[np.int32],
    carried: Sequence[StepPlan],
    measured: Mapping[str, Mapping[str, float]],
    to_be_made: str = "",
) -> Plan:
    """Extend a plan, carried over as it is, by one more step with the pairs that are new.

    carried_rows, carried_step: intp[m] and int32[m], pair and step of each entry of the plan that
    is carried; a pair without an entry is new.
    carried: the steps of that plan; ``measured``: the summaries that it rests on.
    ``settings.rehearse`` adds earlier pairs to the new step.
    to_be_made: says who makes the step's pairs later, where none is new yet.

    Raises :class:`PartitionError` where no pair is new, unless they are to be made, and where a
    carried step would not have the pairs that it had.
    """
    number = len(carried) + 1
    is_new = np.ones(len(pairs), dtype=bool)
    is_new[carried_rows] = False
    if not is_new.any() and not to_be_made:
        raise PartitionError("no pair is new and trainable: there is nothing to extend the run by")
    new_rows = np.flatnonzero(is_new)
    rows, step_of = in_order(
        np.concatenate([carried_rows, new_rows]),
        np.concatenate([carried_step, np.full(len(new_rows), number, dtype=np.int32)]),
    )
    contents = [*(step.contents for step in carried), ""]
    if settings.rehearse and is_new.any():
        rows, step_of, contents = _rehearsed(
            pairs, settings, rows, step_of, contents, steps=[number]
        )
    digests = _digests(pairs.ids[rows], step_of, number)
    for step, digest in zip(carried, digests, strict=False):
        if step.digest != digest:
            raise PartitionError(
                f"step {step.step} would not have the pairs that it was trained on: its digest is "
                f"{digest[:12]}, not {step.digest[:12]}"
            )
    members = rows[step_of == number]
    news, sources = (_by_source(pairs, found) for found in (new_rows, members))
    new = StepPlan(
        step=number,
        contents=f"new pairs of {' + '.join(news)}{contents[-1]}" if news else to_be_made,
        pairs=len(members),
        sources=sources,
        digest=digests[-1],
    )
    return Plan(
        settings=settings,
        rows=rows,
        step_of=step_of,
        steps=(*carried, new),
        measured=measured,
        ignored_settings=(),
    )
