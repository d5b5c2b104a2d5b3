"""What is computed of arms, and what is said of it, from values that are made up."""

from typing import Any

import numpy as np
import pytest

from sdpo.errors import UserError
from sdpo.study.comparison import Comparison, compare
from sdpo.study.conclusions import conclude
from sdpo.study.results import PairValues, StepResult, TrialResult
from sdpo.study.tables import comparison_tables

PAIRS = 400
NOISE = np.random.default_rng(7)
BASE = NOISE.normal(0, 2, PAIRS)


def trial(arm: str, seed: int = 42, *, model: str = "", **more: Any) -> TrialResult:
    step = StepResult(
        step=1,
        pairs=100,
        objective="DPO",
        reference="S",
        model=model or f"{arm}-{seed}",
        seconds=60.0,
        is_scored=True,
    )
    return TrialResult(
        trial=f"{arm}.{seed}",
        arm=arm,
        seed=seed,
        run=f"/runs/{arm}",
        identity={},
        strategy="natural",
        start="S",
        steps=[step],
        rows_scored=500,
        **more,
    )


def values(shift: float = 0.0, *, noise: float = 0.5, pairs: slice = slice(None)) -> PairValues:
    generator = np.random.default_rng(int(1000 * (shift + 10)))
    gamma = BASE + shift + generator.normal(0, noise, PAIRS)
    names = np.array([f"pair-{number:04d}" for number in range(PAIRS)])
    prompts = np.array([f"prompt-{number // 2:04d}" for number in range(PAIRS)])
    return PairValues(names[pairs], prompts[pairs], BASE[pairs], gamma[pairs])


def compared(shifts: dict[str, list[float]], **more: Any) -> Comparison:
    """Arms whose gamma is shifted so many nats, one for each seed."""
    results = [
        trial(arm, 42 + seed, **more) for arm, each in shifts.items() for seed in range(len(each))
    ]
    found = {
        f"{arm}.{42 + seed}": values(shift)
        for arm, each in shifts.items()
        for seed, shift in enumerate(each)
    }
    return compare("made-up", results, found, seed=0)


def test_an_arm_that_is_better_is_said_to_be_so_and_one_that_is_not_is_not() -> None:
    found = compared({"sdpo": [0.0], "better": [1.5], "alike": [0.01], "worse": [-1.5]})
    shown = {(c.arm, c.measure) for c in found.contrasts if c.is_shown}
    assert shown == {
        (arm, measure)
        for arm in ("better", "worse")
        for measure in ("ranking_accuracy", "gamma")
    }  # fmt: skip
    said = conclude(found)
    assert said.headline == "On ranking accuracy: better better than sdpo, worse worse than sdpo."
    text = " ".join(said.sentences)
    assert "better prefers the chosen answers more than sdpo: +1.5" in text
    assert "No difference in ranking accuracy from sdpo was shown for alike, which does not" in text
    assert "6 differences were tested together; p-values are corrected for that (Holm)" in text
    assert "Each was trained with one seed" in text
    assert "Not measured: suites (evaluation.suites) and win rates (evaluation.win_rate" in text


def test_where_nothing_is_shown_the_smallest_difference_that_could_have_been_is_said() -> None:
    found = compared({"sdpo": [0.0], "alike": [0.01]})
    accuracy = found.contrasts[0]
    assert accuracy.found.se is not None
    assert accuracy.smallest == pytest.approx(accuracy.found.se * (2.241403 + 0.841621), abs=1e-5)
    said = conclude(found)
    assert said.headline == "No difference in ranking accuracy from sdpo was shown for alike."
    points = f"one of {100 * (accuracy.smallest or 0):.1f} points or more would have been shown"
    assert points in " ".join(said.sentences)


def test_several_seeds_have_to_agree() -> None:
    agree = compared({"sdpo": [0.0, 0.02, 0.01], "better": [1.0, 1.02, 0.99]})
    assert agree.seeds == 3
    gamma = agree.contrasts[1]
    assert gamma.is_shown
    assert gamma.found.over_seeds is not None
    assert gamma.found.over_seeds.seeds == 3
    differ = compared({"sdpo": [0.0, 0.02, 0.01], "now and then": [3.0, -2.0, 2.5]})
    gamma = differ.contrasts[1]
    assert gamma.corrected is not None
    assert gamma.corrected < 0.01
    assert not gamma.is_shown
    # Single seeds differ by 3, 2.02 and 2.49 nats either way: what pairs alone could show is no
    # measure of what would be shown.
    assert gamma.found.se is not None
    assert gamma.smallest is not None
    assert gamma.smallest > 20 * gamma.found.se
    text = " ".join(conclude(differ).sentences)
    assert "means over 3 training seeds" in text
    assert "reserved pairs and 3 seeds, one of" in text
    titles = [column for table in comparison_tables(differ) for column in table.columns]
    assert "Over seeds" in titles


def test_every_column_of_a_table_has_a_name_of_its_own() -> None:
    for found in (
        compared({"a": [0.0], "b": [1.0]}),
        compared({"a": [0.0, 0.1], "b": [1.0, 1.1]}),
    ):
        for table in comparison_tables(found):
            assert len(set(table.columns)) == len(table.columns)
            assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_line_of_an_arm_is_the_mean_over_its_seeds() -> None:
    line = compared({"sdpo": [0.0], "two": [1.0, 3.0]}).arms[1]
    gammas = [values(1.0).gamma, values(3.0).gamma]
    assert line.gamma.mean == pytest.approx(np.mean(gammas))
    assert line.accuracy.mean == pytest.approx(np.mean([gamma > 0 for gamma in gammas]))
    assert line.rose.mean == pytest.approx(np.mean([gamma > BASE for gamma in gammas]))
    assert (line.seconds, line.rows_scored, line.trained, line.scorings) == (120.0, 1000, 2, 2)


def test_only_pairs_that_all_arms_set_aside_count() -> None:
    results = [trial("a"), trial("b")]
    found = compare(
        "made-up",
        results,
        {"a.42": values(pairs=slice(0, 300)), "b.42": values(1.0, pairs=slice(100, 400))},
        seed=0,
    )
    assert (found.pairs, found.left_out) == (200, 200)
    expected = (values(1.0).gamma - values().gamma)[100:300].mean()
    assert found.contrasts[1].found.mean == pytest.approx(expected)
    assert "200 reserved pairs are left out" in " ".join(conclude(found).sentences)
    with pytest.raises(UserError, match="no reserved pair in common"):
        compare(
            "made-up",
            results,
            {"a.42": values(pairs=slice(0, 100)), "b.42": values(pairs=slice(100, 400))},
            seed=0,
        )


def test_a_handful_of_prompts_concludes_nothing() -> None:
    few = slice(0, 20)
    found = compare(
        "made-up",
        [trial("a"), trial("b")],
        {"a.42": values(pairs=few), "b.42": values(5.0, pairs=few)},
        seed=0,
    )
    said = conclude(found)
    assert said.headline == "Too few reserved prompts to tell a and b apart."
    assert "set more aside (data.reserve)" in " ".join(said.sentences)
    assert "b prefers" not in " ".join(said.sentences)


def test_arms_that_come_to_one_model_are_said_to_be_one() -> None:
    found = compared({"sdpo": [0.0], "same": [0.0]}, model="one")
    assert found.same == [("sdpo", "same")]
    text = " ".join(conclude(found).sentences)
    assert "sdpo and same came to the very same models" in text
    assert "no pair tells them apart" in text


def test_one_arm_that_came_to_a_result_is_no_comparison() -> None:
    with pytest.raises(UserError, match=r"1 of the arms came to a result\. b failed: no disk"):
        compare("made-up", [trial("a")], {"a.42": values()}, seed=0, failed={"b": "no disk"})
