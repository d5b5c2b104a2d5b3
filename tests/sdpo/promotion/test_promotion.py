"""The gate of a promotion, on measured numbers that are made up, and by hand where they are few."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scored import write_scores

from sdpo.config import ProbeConfig, ReserveConfig
from sdpo.errors import ConfigError, Fault, UserError
from sdpo.promotion.judge import (
    GateSettings,
    Judgement,
    judge,
    judgement_settings,
    prompt_overlap,
)
from sdpo.stats.reserve_parts import part_of
from sdpo.store.run_folder import RunFolder

PROBE = ProbeConfig(bootstrap_resamples=400)
Gammas = Mapping[str, Sequence[float]]
"""Per source the gamma of each reserved pair."""
Judge = Callable[..., Judgement]


def table(gammas: Gammas, more: Mapping[str, Sequence[float]] = {}) -> pa.Table:
    """``probes/M_t.parquet``: the reserve of each source, and D_2 from ``more``."""
    rows = [
        {
            "pair_id": f"{prefix}{source}-{i:05d}",
            "prompt_key": f"{prefix}{source}-p{i:05d}",
            "source": source,
            "probe": f"reserve:{source}" if prefix == "r" else "D_2",
            "sampled": True,
            "chosen_logps": float(gamma) - 50.0,
            "rejected_logps": -50.0,
            "chosen_tokens": 10,
            "rejected_tokens": 10,
            "complete": True,
        }
        for prefix, side in (("r", gammas), ("d", more))
        for source, values in side.items()
        for i, gamma in enumerate(values)
    ]
    return pa.Table.from_pylist(rows)


@pytest.fixture
def gate(tmp_path: Path) -> Judge:
    """Judge M_2 against M_1 on reserves with these gammas."""

    def judged(
        models: Sequence[Gammas],
        *,
        on_new: Sequence[Gammas] = ({}, {}, {}),
        trained: Sequence[str] = (),
        compare_on: Literal["all", "report"] = "all",
        **settings: Any,
    ) -> Judgement:
        run = RunFolder(tmp_path / "run")
        run.probes.mkdir(parents=True, exist_ok=True)
        for number, (gammas, more) in enumerate(zip(models, on_new, strict=True)):
            pq.write_table(table(gammas, more), run.probes / f"M_{number}.parquet")
        reserve = [f"r{s}-p{i:05d}" for s, gammas in models[0].items() for i in range(len(gammas))]
        keys, steps = [*reserve, *trained], [0] * len(reserve) + [2] * len(trained)
        pq.write_table(pa.table({"prompt_key": keys, "step": steps}), run.plan)
        gate_settings = GateSettings(**settings)
        reserve = ReserveConfig(compare_on=compare_on)
        return judge(run, new=2, current=1, settings=gate_settings, probe=PROBE, reserve=reserve)

    return judged


def spread(count: int, mean: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 3.0, count)


def failed(found: Judgement) -> list[tuple[str, str]]:
    return [(check.check, check.scope) for check in found.checks if not check.passed]


def test_the_numbers_of_all_pairs_and_of_a_source_by_hand(gate: Judge) -> None:
    start = {"a": [-1.0, 1.0], "b": [0.0]}
    current = {"a": [1.0, 1.0], "b": [2.0]}
    new = {"a": [2.0, 0.0], "b": [4.0]}
    found = gate([start, current, new])
    everything, a, b = found.comparisons
    assert [e["scope"] for e in found.comparisons] == ["all", "a", "b"]
    assert [e["pairs"] for e in found.comparisons] == [3, 2, 1]

    def of(entry: dict[str, Any], group: str, number: str) -> float:
        return float(entry[group][number]["estimate"])

    assert of(everything, "S", "ranking_accuracy") == pytest.approx(1 / 3)
    assert of(everything, "current", "ranking_accuracy") == 1.0
    assert of(everything, "new", "ranking_accuracy") == pytest.approx(2 / 3)
    assert of(everything, "current", "accuracy_vs_S") == pytest.approx((1 + 0.5 + 1) / 3)
    assert of(everything, "new", "accuracy_vs_S") == pytest.approx(2 / 3)
    assert of(everything, "current", "margin") == pytest.approx((2 + 0 + 2) / 3)
    assert of(everything, "new", "margin") == pytest.approx((3 - 1 + 4) / 3)
    assert of(everything, "difference", "margin") == pytest.approx(2 / 3)
    assert of(a, "difference", "accuracy_vs_S") == pytest.approx(0.5 - 0.75)
    assert b["new"]["margin"] == {"estimate": 4.0, "low": None, "high": None}


def test_a_model_that_is_better_passes_and_says_on_how_many_pairs(gate: Judge) -> None:
    start = {"a": spread(150, 0), "b": spread(100, 0, 1)}
    current = {k: v + 1 for k, v in start.items()}
    new = {k: v + 2 for k, v in start.items()}
    found = gate([start, current, new])
    assert (found.outcome, found.pairs) == ("passed", 250)
    assert found.reason == "not worse than the current model on 250 reserved pairs"
    assert not failed(found)


def test_a_model_that_is_worse_by_more_than_the_tolerance_is_refused_with_the_numbers(
    gate: Judge,
) -> None:
    start = {"a": spread(300, 0)}
    current = {"a": start["a"] + 4}
    new = {"a": start["a"] + 2.5}
    found = gate([start, current, new])
    assert found.outcome == "refused"
    assert ("margin", "all") in failed(found)
    assert "margin 4.000 -> 2.500 nats, -1.500 [-1.500, -1.500] over 300 pairs" in found.reason
    assert gate([start, current, new], margin_tolerance_nats=1.6).outcome == "passed"


def test_not_worse_has_to_be_shown_by_the_interval_and_not_by_the_estimate(gate: Judge) -> None:
    start = {"a": np.zeros(300)}
    current = {"a": np.full(300, 5.0)}
    noisy = {"a": 5.0 + spread(300, 0) * 4 + 0.3}
    found = gate([start, current, noisy], accuracy_tolerance=1.0)
    difference = found.comparisons[0]["difference"]["margin"]
    assert difference["estimate"] > -1.0 > difference["low"]
    assert failed(found) == [("margin", "all")]


def test_one_source_that_is_surely_worse_refuses_although_all_together_are_not(
    gate: Judge,
) -> None:
    start = {"a": spread(400, 0), "b": spread(100, 0, 1)}
    current = {k: v + 4 for k, v in start.items()}
    new = {"a": start["a"] + 6, "b": start["b"] + 1}
    found = gate([start, current, new])
    assert failed(found) == [("margin", "b")]
    assert found.outcome == "refused"


def test_fewer_pairs_than_needed_are_too_few_to_tell_unless_the_settings_say_otherwise(
    gate: Judge,
) -> None:
    start = {"a": spread(199, 0)}
    models = [start, {"a": start["a"] + 1}, {"a": start["a"] + 2}]
    found = gate(models)
    assert found.outcome == "too few to tell"
    assert found.reason == "199 reserved pairs are too few to tell, 200 are needed"
    assert gate(models, min_pairs=199).outcome == "passed"
    otherwise = gate(models, when_too_few="estimate")
    assert otherwise.outcome == "passed"
    assert "by estimates alone" in otherwise.reason
    worse = [start, {"a": start["a"] + 4}, {"a": start["a"] + 2}]
    assert gate(worse, when_too_few="estimate").outcome == "refused"
    assert gate(worse).outcome == "too few to tell"


def test_pairs_that_a_sweep_chose_its_settings_by_do_not_promote_what_it_chose(
    gate: Judge,
) -> None:
    start = {"a": spread(600, 0)}
    reports = part_of(np.array([f"ra-p{i:05d}" for i in range(600)])) == "report"
    current = {"a": start["a"] + 4}
    new = {"a": np.where(reports, start["a"] + 2.5, start["a"] + 9)}
    assert gate([start, current, new]).outcome == "passed"
    found = gate([start, current, new], compare_on="report")
    assert (found.outcome, found.pairs) == ("refused", int(reports.sum()))
    assert "-1.500 [-1.500, -1.500]" in found.reason


def test_gamma_that_fell_below_s_or_ran_away_is_refused(gate: Judge) -> None:
    start = {"a": spread(250, 0)}
    fell = gate([start, {"a": start["a"] - 1}, {"a": start["a"] - 0.5}])
    assert failed(fell) == [("gamma", "all")]
    ran = gate([start, {"a": start["a"] + 1}, {"a": start["a"] + 200}])
    assert failed(ran) == [("gamma", "all")]
    assert "gamma (all): mean gamma changed by +200.000" in ran.reason


def test_a_reserved_prompt_that_was_trained_on_is_refused(gate: Judge) -> None:
    start = {"a": spread(250, 0)}
    models = [start, {"a": start["a"] + 1}, {"a": start["a"] + 2}]
    found = gate(models, trained=["ra-p00003", "elsewhere"])
    assert failed(found) == [("prompt overlap", "all")]
    assert "1 of 250 reserved pairs have a prompt that was trained on" in found.reason
    allowed = gate(models, trained=["ra-p00003", "elsewhere"], prompt_overlap_max=0.01)
    assert allowed.outcome == "passed"


def test_new_pairs_that_the_current_model_has_seen_before_are_refused(gate: Judge) -> None:
    start = {"a": spread(250, 0)}
    models = [start, {"a": start["a"] + 1}, {"a": start["a"] + 2}]
    fresh = {"a": spread(100, 0, 5)}
    seen = [fresh, {"a": fresh["a"] + 20}, {"a": fresh["a"] + 30}]
    found = gate(models, on_new=seen)
    assert failed(found) == [("contamination", "new pairs")]
    assert "a gap of +19.000 [+19.000, +19.000]" in found.reason
    assert gate(models, on_new=seen, contamination_gap_max_nats=25).outcome == "passed"
    unseen = [fresh, {"a": fresh["a"] + 1}, {"a": fresh["a"] + 2}]
    assert gate(models, on_new=unseen).outcome == "passed"


def test_only_pairs_that_all_three_models_were_measured_on_are_compared(gate: Judge) -> None:
    start = {"a": spread(250, 0)}
    found = gate([start, {"a": start["a"][:240] + 1}, {"a": start["a"] + 2}])
    assert found.pairs == 240


def test_a_run_without_a_reserve_or_a_measurement_is_a_fault(gate: Judge, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="no reserve"):
        gate([{}, {}, {}], on_new=[{"a": [1.0]}] * 3)
    (tmp_path / "run" / "probes" / "M_1.parquet").unlink()
    with pytest.raises(Fault, match="M_1 of run run was not measured"):
        judge(RunFolder(tmp_path / "run"), new=2, current=1, settings=GateSettings(), probe=PROBE)


def test_the_overlap_counts_steps_up_to_the_new_one_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    pq.write_table(pa.table({"prompt_key": ["p", "q", "q", "p"], "step": [0, 0, 1, 3]}), run.plan)
    assert prompt_overlap(run, up_to=2) == (1, 2)
    assert prompt_overlap(run, up_to=3) == (2, 2)


BETTER: Sequence[Gammas] = ({"a": spread(300, 0)}, {"a": spread(300, 1)}, {"a": spread(300, 3)})
"""S, the current and the new model, each better than the one before."""


def quizzed(tmp_path: Path, right: Sequence[float], *, count: int = 400) -> None:
    """Both models were asked ``count`` questions: M_1 is right in half of them."""
    run = RunFolder(tmp_path / "run")
    for model, share in enumerate(right, start=1):
        values = [float(i % 100 < 100 * share) for i in range(count)]
        write_scores(run, model, "quiz", values)


@pytest.mark.parametrize(
    ("right", "limit", "outcome"),
    [
        ((0.50, 0.50), -0.01, "passed"),
        ((0.50, 0.60), -0.01, "passed"),
        ((0.50, 0.49), -0.01, "refused"),  # by its estimate not, by its interval
        ((0.50, 0.49), -0.03, "passed"),
        ((0.50, 0.40), -0.03, "refused"),
        ((0.50, 0.60), 0.02, "passed"),
        ((0.50, 0.50), 0.02, "refused"),  # a limit above 0 asks for a gain
    ],
)
def test_a_suite_counts_as_accuracy_does_by_the_end_of_its_interval(
    gate: Judge, tmp_path: Path, right: tuple[float, float], limit: float, outcome: str
) -> None:
    quizzed(tmp_path, right)
    found = gate(BETTER, evaluations={"quiz": limit})
    assert found.outcome == outcome
    (check,) = (check for check in found.checks if check.check == "suite")
    assert check.scope == "quiz"
    assert "over 400 documents" in check.why
    assert f"the limit is {limit:+g}" in check.why
    assert gate(BETTER).outcome == "passed", "without it nothing but the reserve counts"


def test_few_documents_are_too_few_to_tell_unless_the_settings_say_otherwise(
    gate: Judge, tmp_path: Path
) -> None:
    quizzed(tmp_path, (0.5, 0.49), count=100)
    held = gate(BETTER, evaluations={"quiz": -0.02})
    assert held.outcome == "too few to tell"
    assert held.reason == "100 documents of quiz are too few to tell, 200 are needed"
    told = gate(BETTER, evaluations={"quiz": -0.02}, when_too_few="estimate")
    assert told.outcome == "passed"
    assert told.reason.startswith("by estimates alone, since the documents are few")
    assert gate(BETTER, evaluations={"quiz": -0.001}, when_too_few="estimate").outcome == "refused"


def test_a_suite_that_nobody_asked_the_models_is_told_with_the_command(
    gate: Judge, tmp_path: Path
) -> None:
    quizzed(tmp_path, (0.5,))
    with pytest.raises(UserError, match="sdpo evaluate run --suite quiz --models M_1,M_2"):
        gate(BETTER, evaluations={"quiz": -0.01})


def test_limits_of_suites_are_given_one_by_one_on_the_command_line() -> None:
    given = ["evaluations.quiz=-0.01", "evaluations.mmlu=0.02", "min_pairs=50"]
    settings = judgement_settings(given)
    assert settings.evaluations == {"quiz": -0.01, "mmlu": 0.02}
    assert settings.min_pairs == 50
    with pytest.raises(ConfigError, match="write a limit for each task"):
        judgement_settings(["evaluations={quiz: -0.01}"])
    with pytest.raises(ConfigError, match="should be a finite number"):
        judgement_settings(["evaluations.quiz=nan"])
    assert "evaluations" not in GateSettings().rules(), "decisions on disk have none"
