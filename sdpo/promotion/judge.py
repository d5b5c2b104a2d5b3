"""Judge a new model before it is put in use: is it worse than the current one, and can one tell?

New and current model are both compared with S on the same reserved pairs, which neither was ever
trained on: `accuracy_vs_S`, the share of pairs whose gamma rose above S's (ties 1/2), and the
margin, the mean of gamma_M - gamma_S in nats. Over all pairs the new model must be shown not to be
worse than the current one by more than a tolerance: the 95% interval of the paired difference,
which resamples prompts, lies wholly above -tolerance (non-inferiority). Of a single source, which
seldom has pairs enough for that, it must not be shown to be worse: an interval below -tolerance
refuses.

The numbers come from the probes of the run that holds both models, and where suites count
(:mod:`sdpo.promotion.judge_suites`) from its evaluations; nothing is measured here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from sdpo.config import Group, ProbeConfig, ReserveConfig
from sdpo.config.annotations import NO_UNIT, SHARE, Unit
from sdpo.config.load import checked
from sdpo.errors import ConfigError, Fault
from sdpo.promotion.judge_suites import SuiteVerdict, judge_suites
from sdpo.stats.bootstrap import Floats, intervals
from sdpo.stats.contamination import CONTAMINATION_NATS, contamination
from sdpo.stats.gamma import Measured, whole_reserve
from sdpo.stats.gamma_rows import Contamination
from sdpo.stats.reserve_parts import part_of
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import planned, read_probe

_SUITES = "evaluations"
ALL = "all"
"""The scope of all reserved pairs together; the other scopes are sources."""

Outcome = Literal["passed", "refused", "too few to tell"]


class GateSettings(Group):
    """What a new model must hold before it replaces the current one."""

    accuracy_tolerance: Annotated[float, Unit(SHARE)] = Field(
        0.05,
        ge=0,
        le=1,
        title="Accuracy tolerance",
        description="By how much accuracy_vs_S on the reserve may be below the current model's, "
        "as a share of pairs: 0.05 is five points.",
    )
    margin_tolerance_nats: Annotated[float, Unit("nats")] = Field(
        1.0,
        ge=0,
        title="Margin tolerance (nats)",
        description="By how many nats the mean margin over S on the reserve may be below the "
        "current model's.",
    )
    min_pairs: Annotated[int, Unit("pairs")] = Field(
        200,
        ge=1,
        title="Pairs needed",
        description="Fewer reserved pairs than this are too few to tell.",
    )
    when_too_few: Literal["hold", "estimate"] = Field(
        "hold",
        title="When too few",
        description="`hold`: too few pairs do not promote; `estimate`: the estimates decide, "
        "without their intervals.",
    )
    gamma_change_min_nats: Annotated[float, Unit("nats")] = Field(
        0.0,
        title="Gamma change, least (nats)",
        description="Mean gamma on the reserve must have changed from S to the new model by this "
        "many nats at least: below 0 it prefers the chosen answers less than S does.",
    )
    gamma_change_max_nats: Annotated[float, Unit("nats")] = Field(
        100.0,
        title="Gamma change, most (nats)",
        description="And by this many at most: a model that has run away from S, which "
        "over-optimisation looks like, is not promoted.",
    )
    prompt_overlap_max: Annotated[float, Unit(SHARE)] = Field(
        0.0,
        ge=0,
        le=1,
        title="Prompt overlap, most",
        description="Share of the reserved pairs whose prompt was trained on, at most.",
    )
    contamination_gap_max_nats: Annotated[float, Unit("nats")] = Field(
        CONTAMINATION_NATS,
        ge=0,
        title="Contamination gap, most (nats)",
        description="How much more than on the reserve the current model may have moved away from "
        "S on the new pairs, before it trained on them: more says that it has seen them.",
    )
    evaluations: Annotated[dict[str, float], Unit(NO_UNIT)] = Field(
        {},
        title="Suites",
        description="By task or suite, the least that its score may change from the current model: "
        "`truthfulqa_mc2: -0.01` tolerates a point less. It has to be in evaluation.suites.",
    )

    def rules(self) -> dict[str, Any]:
        """Return the settings as a decision keeps them; what came later only where it is used."""
        rules = self.model_dump()
        if not self.evaluations:
            del rules["evaluations"]
        return rules


def judgement_settings(given: Sequence[str]) -> GateSettings:
    """Make settings from ``key=value`` texts, as the command line gets them.

    Raises:
        ConfigError: an unknown key or an impossible value.
    """
    values: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--gate {text}: write it as key=value")
        group, dot, task = key.partition(".")
        if group == _SUITES and dot:
            values.setdefault(_SUITES, {})[task] = value
        elif group == _SUITES:
            raise ConfigError(
                f"--gate {text}: write a limit for each task: --gate {_SUITES}.truthfulqa_mc2=-0.01"
            )
        else:
            values[key] = value
    return checked(GateSettings, values, name="gate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check is one thing that the gate looked at; ``why`` has its numbers."""

    check: str
    scope: str
    passed: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A judgement is what the gate says of M_``new`` against M_``current``.

    ``comparisons``: per scope the numbers, of JSON types (see :func:`compare`).
    """

    outcome: Outcome
    reason: str
    new: int
    current: int
    pairs: int
    checks: tuple[Check, ...]
    comparisons: tuple[dict[str, Any], ...]


def judge(
    run: RunFolder,
    *,
    new: int,
    current: int,
    settings: GateSettings,
    probe: ProbeConfig,
    reserve: ReserveConfig = ReserveConfig(),
) -> Judgement:
    """Compare M_``new`` with M_``current``, both models of ``run``, on its reserve.

    Where settings were chosen on one part of the reserve (``reserve.compare_on``), on the other.

    Raises:
        Fault: a model was not measured.
        UserError: a model was not evaluated on a suite that the settings name.
    """
    tables = {}
    for number in sorted({0, current, new - 1, new}):
        path = run.probes / f"M_{number}.parquet"
        if not path.is_file():
            raise Fault(f"M_{number} of run {run.name} was not measured: {path} is not there")
        tables[f"M_{number}"] = read_probe(run, number, last=new)
    measured = [_reserved(tables[f"M_{number}"], reserve) for number in (0, current, new)]
    resamples, seed = probe.bootstrap_resamples, probe.seed
    comparisons = compare(*measured, resamples=resamples, seed=seed)
    gap = contamination(tables, step=new, model=new - 1, resamples=resamples, seed=seed)
    overlap = prompt_overlap(run, up_to=new)
    pairs = comparisons[0]["pairs"]
    few = pairs < settings.min_pairs
    suites = judge_suites(
        run,
        settings.evaluations,
        new=new,
        current=current,
        min_documents=settings.min_pairs,
    )
    checks = [
        *_not_worse(comparisons, settings, few=few),
        _gamma_limits(comparisons[0], settings),
        _overlap_limit(overlap, settings),
        _contamination_limit(gap, settings),
        *(Check(check="suite", scope=s.name, passed=s.passed, why=s.why) for s in suites),
    ]
    outcome, reason = _outcome(checks, pairs, suites, settings, few=few)
    return Judgement(
        outcome=outcome,
        reason=reason,
        new=new,
        current=current,
        pairs=pairs,
        checks=tuple(checks),
        comparisons=tuple(comparisons),
    )


def compare(
    start: Measured, current: Measured, new: Measured, *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Compare S, the current and the new model on the pairs of all three: all, then by source.

    Of each model ``ranking_accuracy``, ``accuracy_vs_S`` and ``margin`` (mean gamma_M - gamma_S,
    nats); ``difference`` is new minus current of the latter two. Every number is a mapping of
    ``estimate``, ``low`` and ``high``, the latter None where all pairs have one prompt.

    Raises:
        Fault: there is no pair that all three were measured on.
    """
    ids = np.intersect1d(np.intersect1d(start.pair_id, current.pair_id), new.pair_id)
    if not len(ids):
        raise Fault("there is no reserved pair that all three models were measured on")
    rows = [model.take(np.searchsorted(model.pair_id, ids)) for model in (start, current, new)]
    sources = np.unique(rows[0].source).tolist()
    scopes = {ALL: np.ones(len(ids), dtype=bool)}
    scopes |= {str(source): rows[0].source == source for source in sources}
    return [
        _compare(scope, *(model.take(mask) for model in rows), resamples=resamples, seed=seed)
        for scope, mask in scopes.items()
    ]


def _compare(
    scope: str, start: Measured, current: Measured, new: Measured, *, resamples: int, seed: int
) -> dict[str, Any]:
    base = start.gamma
    columns: dict[str, Floats] = {"S.ranking_accuracy": (base > 0).astype(np.float64)}
    for name, model in (("current", current), ("new", new)):
        change = model.gamma - base
        columns |= {
            f"{name}.ranking_accuracy": (model.gamma > 0).astype(np.float64),
            f"{name}.accuracy_vs_S": (change > 0) + 0.5 * (change == 0),
            f"{name}.margin": change,
        }
    for number in ("accuracy_vs_S", "margin"):
        columns[f"difference.{number}"] = columns[f"new.{number}"] - columns[f"current.{number}"]
    values = np.stack(list(columns.values()), axis=1)
    found = intervals(values, start.prompt_key, resamples=resamples, seed=seed)
    entry: dict[str, Any] = {
        "scope": scope,
        "pairs": len(base),
        "prompts": len(np.unique(start.prompt_key)),
    }
    for (name, column), (low, high) in zip(columns.items(), found, strict=True):
        group, number = name.split(".")
        entry.setdefault(group, {})[number] = {
            "estimate": float(column.mean()),
            "low": low,
            "high": high,
        }
    return entry


def prompt_overlap(run: RunFolder, *, up_to: int) -> tuple[int, int]:
    """Count the reserved pairs whose prompt a step 1..``up_to`` trained on, and all reserved
    pairs."""
    plan = planned(run).table(("prompt_key", "step"))
    steps = plan["step"].to_numpy()
    reserved = plan.filter(pa.array(steps == 0))["prompt_key"]
    trained = plan.filter(pa.array((steps > 0) & (steps <= up_to)))["prompt_key"]
    found = pc.is_in(reserved, value_set=pc.unique(trained))
    return int(pc.sum(found).as_py() or 0), len(reserved)


def _reserved(table: pa.Table, reserve: ReserveConfig) -> Measured:
    """Return a model's measurements on the pairs of all sources that compare, by pair id."""
    found = whole_reserve(table)
    if found is None:
        raise Fault("the run has no reserve: nothing can be compared (data.reserve)")
    if reserve.compare_on == "all":
        return found
    return found.take(part_of(found.prompt_key) == reserve.compare_on)


def _not_worse(
    comparisons: list[dict[str, Any]], settings: GateSettings, *, few: bool
) -> list[Check]:
    tolerances = {
        "accuracy_vs_S": settings.accuracy_tolerance,
        "margin": settings.margin_tolerance_nats,
    }
    checks = []
    for entry in comparisons:
        for number, tolerance in tolerances.items():
            difference = entry["difference"][number]
            if few:
                passed = difference["estimate"] >= -tolerance
            elif entry["scope"] == ALL:
                passed = difference["low"] is not None and difference["low"] >= -tolerance
            else:
                passed = difference["high"] is None or difference["high"] >= -tolerance
            unit = " nats" if number == "margin" else ""
            before, after = (entry[m][number]["estimate"] for m in ("current", "new"))
            why = (
                f"{number} {before:.3f} -> {after:.3f}{unit}, {_with_interval(difference)} over "
                f"{entry['pairs']} pairs; tolerated is -{tolerance:g}{unit}"
            )
            checks.append(Check(check=number, scope=entry["scope"], passed=passed, why=why))
    return checks


def _with_interval(number: Mapping[str, float | None]) -> str:
    if number["low"] is None:
        return f"{number['estimate']:+.3f} without an interval"
    return f"{number['estimate']:+.3f} [{number['low']:+.3f}, {number['high']:+.3f}]"


def _gamma_limits(entry: Mapping[str, Any], settings: GateSettings) -> Check:
    change = entry["new"]["margin"]
    low, high = settings.gamma_change_min_nats, settings.gamma_change_max_nats
    return Check(
        check="gamma",
        scope=ALL,
        passed=low <= change["estimate"] <= high,
        why=f"mean gamma changed by {_with_interval(change)} nats from S; the limits are {low:g} "
        f"and {high:g}",
    )


def _overlap_limit(overlap: tuple[int, int], settings: GateSettings) -> Check:
    shared, reserved = overlap
    return Check(
        check="prompt overlap",
        scope=ALL,
        passed=shared <= settings.prompt_overlap_max * reserved,
        why=f"{shared} of {reserved} reserved pairs have a prompt that was trained on; at most "
        f"{settings.prompt_overlap_max:.1%} may",
    )


def _contamination_limit(gap: Contamination | None, settings: GateSettings) -> Check:
    if gap is None:
        passed, why = True, "the current model is S, or no new pair has a source with a reserve"
    else:
        limit = max(settings.contamination_gap_max_nats, gap.reserve_mean)
        surely = gap.low is not None and gap.low > 0
        passed = not (surely and gap.gap > limit)
        why = (
            f"before it trained on them the model had moved {gap.mean:.3f} nats away from S on "
            f"the new pairs and {gap.reserve_mean:.3f} on the reserve: a gap of "
            f"{_with_interval({'estimate': gap.gap, 'low': gap.low, 'high': gap.high})}; "
            f"the limit is {limit:g}"
        )
    return Check(check="contamination", scope="new pairs", passed=passed, why=why)


def _outcome(
    checks: list[Check],
    pairs: int,
    suites: Sequence[SuiteVerdict],
    settings: GateSettings,
    *,
    few: bool,
) -> tuple[Outcome, str]:
    hold = settings.when_too_few == "hold"
    unsure = {("suite", verdict.name) for verdict in suites if verdict.few}
    unsure |= {(c.check, c.scope) for c in checks if few and c.check in ("accuracy_vs_S", "margin")}
    failed = [c for c in checks if not c.passed and not (hold and (c.check, c.scope) in unsure)]
    if failed:
        return "refused", "; ".join(f"{c.check} ({c.scope}): {c.why}" for c in failed)
    counted = [
        *([f"{pairs} reserved pairs"] if few else []),
        *(f"{v.documents} documents of {v.name}" for v in suites if v.few),
    ]
    if counted and hold:
        needed = f"{settings.min_pairs} are needed"
        return "too few to tell", f"{' and '.join(counted)} are too few to tell, {needed}"
    which = "the pairs are few" if few else "the documents are few"
    kind = f"by estimates alone, since {which}: " if counted else ""
    on = "".join(f" and on {verdict.name}" for verdict in suites)
    return "passed", f"{kind}not worse than the current model on {pairs} reserved pairs{on}"
