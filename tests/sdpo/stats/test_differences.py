"""Differences of models on the same pairs: intervals, p-values, the correction for many."""

import json
from pathlib import Path

import numpy as np
import pytest

from sdpo.stats.differences import (
    SeedInterval,
    difference,
    holm,
    p_value,
    smallest_shown,
    t_quantile,
)

GOLDEN = Path(__file__).parents[2] / "golden"


def stored(pairs: int = 300, seed: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gamma of two models on pairs, two of a prompt each, which are alike, and their prompts."""
    generator = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(pairs // 2), 2)
    of_prompt = generator.normal(0, 2, pairs // 2)[prompts]
    common = of_prompt + generator.normal(0, 3, pairs)
    moved = generator.normal(0, 1, pairs // 2)[prompts]
    return (
        common + moved + generator.normal(0, 1, pairs),
        common + generator.normal(0, 1, pairs),
        np.array([f"p{prompt}" for prompt in prompts]),
    )


@pytest.mark.parametrize("prompts", [30, 340])
@pytest.mark.parametrize("measure", ["gamma", "ranking accuracy"])
def test_intervals_of_equal_arms_cover_no_difference_as_often_as_they_say(
    measure: str, prompts: int
) -> None:
    """Comparisons are made again from what a real one has kept of every pair: prompts are drawn
    anew, and for each of them the arms exchanged or not, so that they are equal."""
    kept = json.loads((GOLDEN / "pair_values.json").read_text(encoding="utf-8"))
    one, other = (np.array(kept[arm]) for arm in ("sdpo", "dpo"))
    if measure != "gamma":
        one, other = ((gamma > 0).astype(float) for gamma in (one, other))
    assert len(set(kept["prompt"])) == len(one) == 340
    generator = np.random.default_rng(0)
    names, covered, comparisons = np.arange(prompts).astype(np.str_), 0, 200
    for _ in range(comparisons):
        rows = generator.integers(0, len(one), prompts)
        exchanged = generator.random(prompts) < 0.5
        first = np.where(exchanged, other[rows], one[rows])
        second = np.where(exchanged, one[rows], other[rows])
        found = difference(second[None], first[None], names)
        # Where no pair differs none is claimed, and no interval given.
        covered += found.low is None or found.low <= 0 <= (found.high or 0.0)
    assert covered / comparisons >= 0.93


def test_pairs_of_one_prompt_are_covered_as_well() -> None:
    one, other, _ = stored()
    generator = np.random.default_rng(0)
    again = np.array([f"q{place // 2}" for place in range(300)])
    covered, comparisons = 0, 200
    for _ in range(comparisons):
        drawn = generator.integers(0, 150, 150)
        rows = np.stack([2 * drawn, 2 * drawn + 1], axis=1).ravel()
        exchanged = np.repeat(generator.random(150) < 0.5, 2)
        first = np.where(exchanged, other[rows], one[rows])
        second = np.where(exchanged, one[rows], other[rows])
        found = difference(second[None], first[None], again)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
    assert covered / comparisons >= 0.93


def test_a_difference_is_the_mean_over_pairs_of_the_mean_over_seeds() -> None:
    now = np.array([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 0.0]])
    first = np.array([[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]])
    found = difference(now, first, np.array(["a", "b", "c", "d"]))
    assert found.mean == pytest.approx(0.75)  # (1 + 1 + 1 + 1 + 2 + 1 + 0 - 1) / 8
    assert (found.pairs, found.prompts) == (4, 4)
    over = found.over_seeds
    assert over is not None
    # Seeds differ by 1 and 0.5: mean 0.75, sd 0.3536, t(1) = 12.7062, half 12.7062 * 0.25.
    assert (over.low, over.high) == (pytest.approx(0.75 - 3.17655), pytest.approx(0.75 + 3.17655))


def test_the_interval_of_independent_pairs_is_that_of_normal_theory() -> None:
    change = np.random.default_rng(1).normal(0.3, 2.0, 4000)
    prompts = np.array([str(number) for number in range(4000)])
    found = difference(change[None], np.zeros((1, 4000)), prompts)
    se = change.std(ddof=1) / 4000**0.5
    assert found.se == pytest.approx(se, rel=0.05)
    assert found.low == pytest.approx(change.mean() - 1.96 * se, abs=0.1 * se)
    assert found.high == pytest.approx(change.mean() + 1.96 * se, abs=0.1 * se)


def test_pairs_of_one_prompt_that_move_together_make_an_interval_wider() -> None:
    one, other, prompts = stored()
    alone = np.array([str(number) for number in range(len(prompts))])
    together = difference(one[None], other[None], prompts)
    apart = difference(one[None], other[None], alone)
    assert together.se is not None
    assert apart.se is not None
    assert together.se > 1.1 * apart.se


def test_one_seed_says_nothing_of_seeds_and_unequal_numbers_are_not_paired() -> None:
    prompts = np.array(["a", "b"])
    single = difference(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), prompts)
    assert single.over_seeds is not None
    assert (single.over_seeds.seeds, single.over_seeds.low) == (1, None)
    uneven = difference(np.zeros((2, 2)), np.ones((1, 2)), prompts)
    assert uneven.over_seeds is None


@pytest.mark.parametrize(
    ("now", "prompts"), [([1.0, 1.0], ["a", "a"]), ([0.0, 0.0], ["a", "b"])],
    ids=["one prompt", "no pair differs"],
)  # fmt: skip
def test_where_nothing_varies_there_is_no_interval(now: list[float], prompts: list[str]) -> None:
    found = difference(np.array([now]), np.zeros((1, 2)), np.array(prompts))
    assert (found.low, found.high, found.se, found.p) == (None, None, None, None)


def test_a_p_value_is_that_of_students_t() -> None:
    # t(1) is Cauchy: P(|T| > 1) = 1/2. The quantiles are those of every table.
    assert p_value(1.0, 1) == pytest.approx(0.5, abs=1e-6)
    for degrees in (1, 2, 5, 12, 30):
        assert p_value(-t_quantile(degrees), degrees) == pytest.approx(0.05, abs=1e-5)
    assert p_value(1.959964, 400) == pytest.approx(0.05, abs=1e-6)
    assert p_value(0.0, 7) == pytest.approx(1.0)


def test_an_interval_leaves_out_zero_where_its_p_value_is_below_five_percent() -> None:
    generator = np.random.default_rng(2)
    for prompts in (5, 25, 60):
        for shift in (0.2, 0.5, 0.9):
            change = generator.normal(shift, 1.0, prompts)
            names = np.arange(prompts).astype(np.str_)
            found = difference(change[None], np.zeros((1, prompts)), names)
            assert found.p is not None
            assert found.low is not None
            assert (found.p < 0.05) == (found.low > 0)


def test_holm_corrects_the_example_of_its_textbooks() -> None:
    # p 0.01, 0.04, 0.03, 0.005 of four tests: 0.03, 0.06, 0.06, 0.02.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.04, None, 0.6]) == [pytest.approx(0.08), None, pytest.approx(0.6)]
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_the_smallest_difference_is_that_of_a_z_test() -> None:
    # (1.959964 + 0.841621) standard errors at 5% and 80% power; 2.394 for two tests.
    assert smallest_shown(1.0, tests=1) == pytest.approx(2.801585, abs=1e-5)
    assert smallest_shown(2.0, tests=2) == pytest.approx(2 * (2.241403 + 0.841621), abs=1e-5)
    assert smallest_shown(None, tests=3) is None


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
@pytest.mark.parametrize("of_seeds", [0.3, 1.0, 4.0])
def test_the_smallest_difference_is_shown_in_four_of_five_draws_of_pairs_and_seeds(
    seeds: int, of_seeds: float
) -> None:
    # A difference is shown where a z test over pairs says so, corrected for two tests, and where
    # the t interval over seeds leaves out 0.
    half = t_quantile(seeds - 1) * of_seeds
    over_seeds = SeedInterval(seeds=seeds, low=-half, high=half)
    effect = smallest_shown(1.0, tests=2, over_seeds=over_seeds)
    assert effect is not None
    generator = np.random.default_rng(seeds)
    tries = 40_000
    of_pairs = generator.normal(effect, 1.0, tries)
    single = generator.normal(0.0, of_seeds * seeds**0.5, (tries, seeds))
    found = of_pairs + single.mean(axis=1)
    bound = t_quantile(seeds - 1) * single.std(axis=1, ddof=1) / seeds**0.5
    shown = (np.abs(found) > 2.241403) & (np.abs(found) > bound)
    assert shown.mean() == pytest.approx(0.8, abs=0.01)


def test_seeds_that_do_not_vary_make_no_difference_harder_to_show() -> None:
    alike = SeedInterval(seeds=3, low=0.5, high=0.5)
    single = SeedInterval(seeds=1, low=None, high=None)
    alone = smallest_shown(1.0, tests=1)
    assert smallest_shown(1.0, tests=1, over_seeds=alike) == alone
    assert smallest_shown(1.0, tests=1, over_seeds=single) == alone
    assert smallest_shown(None, tests=1, over_seeds=alike) is None


def test_the_quantiles_of_t_are_those_of_draws() -> None:
    generator = np.random.default_rng(3)
    for degrees in (2, 5, 12, 30):
        drawn = generator.standard_t(degrees, 400_000)
        assert t_quantile(degrees) == pytest.approx(np.percentile(drawn, 97.5), rel=0.02)
    assert t_quantile(1000) == pytest.approx(1.96, abs=0.001)
