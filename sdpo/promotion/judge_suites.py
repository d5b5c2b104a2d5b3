"""Judge a new model by suites as well: is it worse than the current one on a task that counts?

The rule is that of the accuracy on the reserve (non-inferiority): the 95% interval of the paired
difference, which resamples documents, must end above the limit that is set for the task.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdpo.errors import UserError
from sdpo.report.evaluations import Line, Score, difference_of, load_evaluations
from sdpo.store.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteVerdict:
    """A task or suite says this of the new model; ``few``: on fewer documents than are needed."""

    name: str
    passed: bool
    few: bool
    documents: int
    why: str


def judge_suites(
    run: RunFolder, limits: Mapping[str, float], *, new: int, current: int, min_documents: int
) -> list[SuiteVerdict]:
    """Compare M_``new`` with M_``current`` on what ``limits`` names.

    ``limits``: by task, group or suite, the least change that is tolerated, in the direction of
    better: -0.01 is one point less. Of fewer than ``min_documents`` the estimate is compared, not
    the interval.

    Raises:
        UserError: a model was not evaluated on one of them; says how to.
    """
    lines = load_evaluations(run) if limits else []
    return [
        _verdict(run, lines, name, limit, new=new, current=current, needed=min_documents)
        for name, limit in limits.items()
    ]


def _verdict(
    run: RunFolder,
    lines: Sequence[Line],
    name: str,
    limit: float,
    *,
    new: int,
    current: int,
    needed: int,
) -> SuiteVerdict:
    line, after, before = _scores(run, lines, name, new=new, current=current)
    found = difference_of(after, before)
    if found is None or after.value is None or before.value is None:
        raise UserError(
            f"gate.evaluations: {name}: its number is no mean over documents, so that no interval "
            "of a difference is known: leave it out"
        )
    sign = 1.0 if line.better else -1.0
    change = found.change
    bounds = [sign * bound for bound in (change.low, change.high) if bound is not None]
    few = found.documents < needed
    least = sign * change.mean if few else min(bounds, default=-math.inf)
    shown = f" [{min(bounds):+.4f}, {max(bounds):+.4f}]" if bounds else " without an interval"
    return SuiteVerdict(
        name=name,
        passed=least >= limit,
        few=few,
        documents=found.documents,
        why=f"{name} ({line.metric}) {before.value:.4f} -> {after.value:.4f}, "
        f"{sign * change.mean:+.4f}{shown} over {found.documents} documents; the limit is "
        f"{limit:+g}",
    )


def _scores(
    run: RunFolder, lines: Sequence[Line], name: str, *, new: int, current: int
) -> tuple[Line, Score, Score]:
    """Return the line of ``name`` with most documents that has both models, and their scores."""
    found = []
    for line in lines:
        scores = {score.model: score for score in line.scores}
        if line.name == name and {new, current} <= scores.keys():
            found.append((line, scores[new], scores[current]))
    if not found:
        raise UserError(
            f"gate.evaluations names {name}, and M_{current} and M_{new} of run {run.name} were "
            "not both evaluated on it: name it in the recipe (evaluation.suites), or call "
            f"`sdpo evaluate {run.name} --suite {name} --models M_{current},M_{new}`"
        )
    return max(found, key=lambda each: sum(m.evaluation.summary.documents for m in each[1].members))
