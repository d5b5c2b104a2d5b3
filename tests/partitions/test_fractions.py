"""The strategies that draw fractions: stratified, and random, the control."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from partitions import Pairs, PartitionError, PartitionSettings, make_plan
from partitions.draw import step_sizes

PAPER = (0.1667, 0.8333)
weights = st.lists(st.integers(1, 50), min_size=1, max_size=5)
stratum_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def pairs_of(counts, *, topics=None):
    n = sum(counts)
    return Pairs(
        ids=np.random.default_rng(n).integers(2**64, size=(n, 2), dtype=np.uint64),
        source=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        source_names=tuple(f"source-{i}" for i in range(len(counts))),
        strata={} if topics is None else {"topic": np.array(topics, dtype=np.int32)},
    )


def plan_of(pairs, strategy="stratified", **settings):
    return make_plan(pairs, PartitionSettings(strategy=strategy, **settings))


@given(stratum_sizes, weights)
def test_every_stratum_is_rounded_to_a_neighbouring_whole_number(sizes, parts):
    rows = step_sizes(sizes, [part / sum(parts) for part in parts])
    for size, row in zip(sizes, rows, strict=True):
        assert sum(row) == size
        for part, count in zip(parts, row, strict=True):
            assert abs(count - Fraction(size * part, sum(parts))) < 1


@given(stratum_sizes, weights)
def test_rounding_does_not_add_up_over_strata(sizes, parts):
    total = np.sum(step_sizes(sizes, [part / sum(parts) for part in parts]), axis=0)
    for part, count in zip(parts, total.tolist(), strict=True):
        error = abs(count - Fraction(sum(sizes) * part, sum(parts)))
        assert error <= 0.5 + 1e-6 if len(parts) == 2 else error < 2


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    weights,
    st.integers(0, 2**64 - 1),
    st.integers(60, 200),
)
def test_strata_are_sources_crossed_with_the_further_columns(n_sources, n_topics, parts, seed, n):
    rng = np.random.default_rng(n)
    source = rng.integers(n_sources, size=n, dtype=np.int32)
    topic = rng.integers(n_topics, size=n, dtype=np.int32)
    pairs = Pairs(
        ids=rng.integers(2**64, size=(n, 2), dtype=np.uint64),
        source=source,
        source_names=("a", "b", "c")[:n_sources],
        strata={"topic": topic},
    )
    exact = [Fraction(part, sum(parts)) for part in parts]
    assume(all(share * n >= 3 for share in exact))  # else a step may be left empty
    plan = plan_of(
        pairs, fractions=[float(s) for s in exact], strata=("source", "topic"), seed=seed
    )
    for s in range(n_sources):
        for t in range(n_topics):
            members = (source == s) & (topic == t)
            for step, share in enumerate(exact, 1):
                count = np.count_nonzero(members & (plan.step_of == step))
                assert abs(count - share * np.count_nonzero(members)) < 1


@pytest.mark.parametrize("strategy", ["stratified", "random"])
def test_the_papers_fractions_come_out(strategy):
    # 12,858 Orca and 60,917 UltraFeedback Cleaned pairs; 0.1667 of them are 12,298.3.
    plan = plan_of(pairs_of([12858, 60917]), strategy, fractions=PAPER)
    assert [step.pairs for step in plan.steps] == [12298, 61477]
    if strategy == "stratified":
        # 2,143.4 and 10,154.9 by source.
        assert plan.steps[0].sources == {"source-0": 2143, "source-1": 10155}


def test_fractions_that_divide_evenly_are_exact_in_every_stratum():
    plan = plan_of(pairs_of([10, 20, 30]), fractions=(0.1, 0.2, 0.7))
    assert [list(step.sources.values()) for step in plan.steps] == [
        [1, 2, 3],
        [2, 4, 6],
        [7, 14, 21],
    ]


def test_many_strata_of_one_pair_still_give_every_step_its_share():
    pairs = pairs_of([1000], topics=range(1000))
    plan = plan_of(pairs, fractions=PAPER, strata=("topic",))
    assert [step.pairs for step in plan.steps] == [167, 833]


def test_random_ignores_strata_that_stratified_keeps():
    # With 30 pairs in each of 20 sources an unstratified draw of exactly 5 from each is unheard of.
    counts = [30] * 20
    stratified, random = (
        plan_of(pairs_of(counts), strategy, fractions=(1 / 6, 5 / 6))
        for strategy in ("stratified", "random")
    )
    assert set(stratified.steps[0].sources.values()) == {5}
    assert set(random.steps[0].sources.values()) != {5}
    assert random.steps[0].pairs == 100


def test_no_strata_is_the_random_draw():
    pairs = pairs_of([50, 70])
    assert (plan_of(pairs, strata=()).step_of == plan_of(pairs, "random").step_of).all()


def test_strata_with_huge_codes_are_crossed_without_overflow():
    # Multiplied up, these codes would wrap at 2**64 and the two topics would be one stratum.
    pairs = Pairs(
        ids=np.random.default_rng(0).integers(2**64, size=(60, 2), dtype=np.uint64),
        source=np.zeros(60, np.int32),
        source_names=("orca",),
        strata={"topic": np.arange(60) % 2, "a": np.full(60, 2**63 - 1), "b": np.full(60, 2**62)},
    )
    for seed in range(5):
        plan = plan_of(pairs, strata=("topic", "a", "b"), fractions=(0.5, 0.5), seed=seed)
        in_step_1 = plan.step_of == 1
        assert [np.count_nonzero(in_step_1[i::2]) for i in (0, 1)] == [15, 15]


@pytest.mark.parametrize("fractions", [(), (0.5, 0.0, 0.5), (1.5, -0.5), (float("nan"), 1.0)])
def test_fractions_that_are_not_positive_are_refused(fractions):
    with pytest.raises(PartitionError, match="must be positive numbers, one per step"):
        plan_of(pairs_of([9]), fractions=fractions)


def test_fractions_that_do_not_sum_to_1_are_refused_with_their_sum():
    with pytest.raises(PartitionError, match=r"sum to 0\.9, not 1"):
        plan_of(pairs_of([9]), fractions=(0.5, 0.4))


def test_an_unknown_stratum_is_refused_with_the_nearest_known():
    with pytest.raises(PartitionError, match=r"partition\.strata: .*did you mean `topic`"):
        plan_of(pairs_of([3], topics=[0, 1, 2]), strata=("source", "topics"))


def test_a_share_too_small_for_one_pair_is_named():
    with pytest.raises(PartitionError, match=r"step 1 \(fraction 0\.01\) has none of the 20 pairs"):
        plan_of(pairs_of([20]), fractions=(0.01, 0.99))
