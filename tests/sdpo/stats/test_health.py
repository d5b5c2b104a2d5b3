"""Retention, likelihood displacement and lengths, against plain loops over the same rows."""

import statistics as stdlib

import numpy as np
import pytest

from sdpo.stats.gamma import Measured
from sdpo.stats.health import Written, displacement, lengths, retention

N = 37


def measured(seed: int, *, pairs: range = range(N), lower: float = 0.0) -> Measured:
    generator = np.random.default_rng(seed)
    chosen, rejected = generator.normal(-40, 6, N), generator.normal(-42, 6, N)
    at = list(pairs)
    return Measured(
        pair_id=np.array([f"pair-{i:03d}" for i in at]),
        prompt_key=np.array([f"prompt-{i // 2}" for i in at]),
        source=np.array(["web"] * len(at)),
        sampled=np.ones(len(at), dtype=bool),
        complete=np.ones(len(at), dtype=bool),
        chosen_logps=chosen[at] - lower,
        rejected_logps=rejected[at] - 2 * lower,
        chosen_tokens=np.full(len(at), 9, dtype=np.int32),
        rejected_tokens=np.full(len(at), 9, dtype=np.int32),
    )


def test_retention_by_quartile_is_what_a_loop_over_the_pairs_gives() -> None:
    start, taught, later = measured(1), measured(2, pairs=range(3, N)), measured(3)
    found = retention(start, taught, later, step=1, model=3, resamples=200, seed=5)
    pairs = []
    for i in range(3, N):
        at = i - 3
        margin = taught.gamma[at] - start.gamma[i]
        pairs.append((margin, later.gamma[i] - taught.gamma[at], later.gamma[i], taught.gamma[at]))
    pairs.sort()
    groups = [pairs, pairs[:9], pairs[9:18], pairs[18:26], pairs[26:]]
    assert [r.quartile for r in found] == [None, 1, 2, 3, 4]
    for got, rows in zip(found, groups, strict=True):
        assert (got.step, got.model, got.pairs) == (1, 3, len(rows))
        assert got.margin == pytest.approx(stdlib.mean(r[0] for r in rows))
        assert got.change.mean == pytest.approx(stdlib.mean(r[1] for r in rows))
        assert got.fell == pytest.approx(sum(r[1] < 0 for r in rows) / len(rows))
        ranked = [int(r[2] > 0) - int(r[3] > 0) for r in rows]
        assert got.accuracy.mean == pytest.approx(stdlib.mean(ranked))
        assert got.change.low is not None
        assert got.change.high is not None
        assert got.change.low < got.change.mean < got.change.high


def test_an_interval_that_resamples_prompts_covers_what_a_normal_approximation_covers() -> None:
    start, taught, later = measured(1), measured(2), measured(3)
    whole = retention(start, taught, later, step=1, model=2, resamples=4000, seed=5)[0]
    moved = later.gamma - taught.gamma
    prompts = [moved[i : i + 2] for i in range(0, N, 2)]
    mean = moved.mean()
    spread = sum(float((part - mean).sum()) ** 2 for part in prompts) ** 0.5 / N
    assert whole.change.low == pytest.approx(mean - 1.96 * spread, abs=0.25 * spread)
    assert whole.change.high == pytest.approx(mean + 1.96 * spread, abs=0.25 * spread)


def test_a_reserve_of_three_pairs_has_no_quartiles_and_an_empty_one_nothing() -> None:
    few = [measured(seed, pairs=range(3)) for seed in (1, 2, 3)]
    assert [r.quartile for r in retention(*few, step=1, model=2, resamples=100, seed=1)] == [None]
    apart = (measured(1, pairs=range(3)), measured(2, pairs=range(3, 6)), measured(3))
    assert retention(*apart, step=1, model=2, resamples=100, seed=1) == []


def test_both_sides_that_fall_while_the_margin_grows_are_displacement() -> None:
    start, later = measured(1), measured(1, lower=3.0)
    found = displacement(start, later, model=2, probe="D_2", resamples=200, seed=1)
    assert found is not None
    assert found.chosen.mean == pytest.approx(-3.0)
    assert found.rejected.mean == pytest.approx(-6.0)
    assert found.margin.mean == pytest.approx(3.0)
    assert found.both_fell == 1.0
    assert found.chosen.low == pytest.approx(-3.0)


def test_the_share_of_pairs_of_which_both_fell_counts_no_pair_of_which_one_rose() -> None:
    start, later = measured(1), measured(2)
    found = displacement(start, later, model=1, probe="D_1", resamples=100, seed=1)
    assert found is not None
    both = [
        later.chosen_logps[i] < start.chosen_logps[i]
        and later.rejected_logps[i] < start.rejected_logps[i]
        for i in range(N)
    ]
    assert found.both_fell == pytest.approx(sum(both) / N)
    assert 0 < found.both_fell < 1


def test_lengths_are_compared_on_the_prompts_of_both_models() -> None:
    start = [Written(prompt_key=f"p{i}", characters=10 * i, finished=True) for i in range(5)]
    later = [
        Written(prompt_key=f"p{i}", characters=10 * i + i, finished=i != 4) for i in range(1, 6)
    ]
    found = lengths(start, later, model=2, resamples=200, seed=1)
    assert found is not None
    assert (found.prompts, found.mean) == (5, pytest.approx(33.0))
    assert found.unfinished == pytest.approx(0.2)
    assert found.change is not None
    assert found.change.mean == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert lengths(start, [], model=2, resamples=100, seed=1) is None
