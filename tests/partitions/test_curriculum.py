"""Curricula: what is easy, what ties do, what is refused."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions import Pairs, PartitionError, PartitionSettings, make_plan
from partitions.draw import step_sizes

FEATURE = {"score_gap": "score_gap", "reference_margin": "gamma", "length": "length"}
curricula = pytest.mark.parametrize("strategy", FEATURE)


def pairs_of(values, *, feature, ids=None, source=None):
    n = len(values)
    ids = np.arange(n) if ids is None else np.asarray(ids)
    return Pairs(
        ids=np.stack([ids, ids], axis=1).astype(np.uint64),
        source=np.zeros(n, dtype=np.int32) if source is None else np.array(source, dtype=np.int32),
        source_names=("orca", "ultra"),
        features={feature: np.array(values, dtype=np.float64)},
    )


def settings_of(strategy, **changes):
    return PartitionSettings(strategy=strategy, **({"fractions": [0.25, 0.75]} | changes))


@pytest.mark.parametrize(
    ("strategy", "easy_first"),
    [
        ("score_gap", [2, 2, 1, 2]),  # 4.0 is the largest gap
        ("reference_margin", [2, 2, 1, 2]),
        ("length", [2, 1, 2, 2]),  # -3.0 stands for the shortest pair
    ],
)
@pytest.mark.parametrize("order", ["given", "easy_first", "hard_first"])
def test_each_curriculum_starts_with_what_is_easy(strategy, easy_first, order):
    pairs = pairs_of([1.0, -3.0, 4.0, 0.5], feature=FEATURE[strategy])
    plan = make_plan(pairs, settings_of(strategy, order=order))
    opposite = {"length": [2, 2, 1, 2]}.get(strategy, [2, 1, 2, 2])
    assert plan.step_of.tolist() == (opposite if order == "hard_first" else easy_first)


@curricula
@given(data=st.data())
def test_no_pair_of_a_step_is_harder_than_one_of_a_later_step(strategy, data):
    values = data.draw(st.lists(st.integers(-5, 5), min_size=20, max_size=80))
    order = data.draw(st.sampled_from(["easy_first", "hard_first"]))
    weights = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    shares = [weight / sum(weights) for weight in weights]
    plan = make_plan(
        pairs_of(values, feature=FEATURE[strategy]),
        settings_of(strategy, order=order, fractions=shares),
    )
    easiness = np.array(values) * (-1 if strategy == "length" else 1)
    easiness = easiness if order == "easy_first" else -easiness
    steps = [easiness[plan.step_of == step.step] for step in plan.steps]
    for earlier, later in pairwise(steps):
        assert earlier.min() >= later.max()
    assert [step.pairs for step in plan.steps] == step_sizes([len(values)], shares)[0]


@curricula
def test_ties_are_cut_by_id_whatever_the_order_of_rows(strategy):
    pairs = pairs_of([2.0] * 4, feature=FEATURE[strategy], ids=[30, 10, 20, 40])
    assert make_plan(pairs, settings_of(strategy)).step_of.tolist() == [2, 1, 2, 2]


@curricula
@pytest.mark.parametrize("unknown", [np.nan, np.inf])
def test_a_pair_without_the_feature_is_refused_and_counted_by_source(strategy, unknown):
    pairs = pairs_of([1.0, unknown, 2.0, unknown], feature=FEATURE[strategy], source=[0, 1, 0, 1])
    with pytest.raises(PartitionError, match=r"2 of 4 pairs have no .*\(ultra 2\)"):
        make_plan(pairs, settings_of(strategy))


def test_pairs_without_ratings_are_told_where_ratings_are_named():
    pairs = pairs_of([np.nan] * 3, feature="score_gap")
    with pytest.raises(PartitionError, match=r"columns\.chosen_score"):
        make_plan(pairs, settings_of("score_gap"))


def test_a_margin_per_token_is_another_feature_than_the_sum():
    with pytest.raises(PartitionError, match="needs gamma_per_token of every pair"):
        make_plan(
            pairs_of([1.0, 2.0], feature="gamma"), settings_of("reference_margin", per_token=True)
        )


def test_the_plan_tells_the_range_of_every_step():
    plan = make_plan(pairs_of([1.0, 3.0, 2.0, 8.0], feature="score_gap"), settings_of("score_gap"))
    assert [step.contents for step in plan.steps] == ["score gap 8 to 8", "score gap 3 to 1"]
    assert plan.measured["D_2"] == {"least": 1.0, "mean": 2.0, "greatest": 3.0}


@curricula
def test_a_share_too_small_for_one_pair_is_refused(strategy):
    pairs = pairs_of([1.0, 2.0], feature=FEATURE[strategy])
    with pytest.raises(PartitionError, match=r"raise its share in partition\.fractions"):
        make_plan(pairs, settings_of(strategy, fractions=[0.01, 0.99]))


def test_single_trains_on_everything_at_once_and_ignores_fractions():
    plan = make_plan(
        pairs_of([1.0, 2.0, 3.0], feature="length"), settings_of("single", fractions=[0.5, 0.5])
    )
    assert plan.step_of.tolist() == [1, 1, 1]
    assert plan.ignored_settings == ("fractions",)
