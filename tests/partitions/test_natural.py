import numpy as np
import pytest

from partitions import Pairs, PartitionError, PartitionSettings, make_plan

SOURCES = ("orca", "ultra", "math")


def pairs_of(counts, *, gamma=None):
    """``counts`` pairs of each source in turn; ``gamma`` per pair."""
    n = sum(counts)
    return Pairs(
        ids=np.stack([np.arange(n), np.arange(n)], axis=1).astype(np.uint64),
        source=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        source_names=SOURCES[: len(counts)],
        features={} if gamma is None else {"gamma": np.array(gamma, dtype=np.float64)},
    )


def contents(plan):
    return [step.contents for step in plan.steps]


def test_each_source_is_a_step_in_the_given_order():
    plan = make_plan(pairs_of([2, 3, 1]), PartitionSettings())
    assert plan.step_of.tolist() == [1, 1, 2, 2, 2, 3]
    assert contents(plan) == ["source orca", "source ultra", "source math"]
    assert [step.sources for step in plan.steps] == [{"orca": 2}, {"ultra": 3}, {"math": 1}]


def test_named_groups_of_sources_are_steps_in_their_order():
    plan = make_plan(pairs_of([2, 3, 1]), PartitionSettings(groups=[["math", "orca"], ["ultra"]]))
    assert plan.step_of.tolist() == [1, 1, 2, 2, 2, 1]
    assert contents(plan) == ["source math + orca", "source ultra"]
    assert plan.steps[0].sources == {"orca": 2, "math": 1}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["orca", "ultra"], ["maths"]], "`maths` is not known .*did you mean `math`"),
        ([["orca", "ultra"]], "leaves out math"),
        ([["orca", "orca"], ["math", "ultra"]], "group 1 names orca more than once"),
        ([["orca", "ultra"], [], ["math"]], "group 2 names no source"),
    ],
)
def test_groups_that_leave_a_source_out_or_name_it_twice_are_refused(groups, message):
    with pytest.raises(PartitionError, match=message):
        make_plan(pairs_of([1, 1, 1]), PartitionSettings(groups=groups))


def test_a_source_that_several_groups_name_is_in_each_of_their_steps():
    groups = [["orca"], ["ultra", "math"], ["math", "orca"]]
    pairs = pairs_of([2, 3, 1])
    plan = make_plan(pairs, PartitionSettings(groups=groups))
    assert plan.rows.tolist() == [0, 0, 1, 1, 2, 3, 4, 5, 5]
    assert plan.step_of.tolist() == [1, 3, 1, 3, 2, 2, 2, 2, 3]
    assert [step.sources for step in plan.steps] == [
        {"orca": 2},
        {"ultra": 3, "math": 1},
        {"orca": 2, "math": 1},
    ]
    assert plan.to_dict()["pairs"] == 6
    alone = make_plan(pairs_of([2]), PartitionSettings())
    assert plan.steps[0].digest == alone.steps[0].digest, (
        "of the step's pairs, whatever others have"
    )


def test_easy_first_counts_a_repeated_source_in_each_of_its_steps():
    settings = PartitionSettings(order="easy_first", groups=[["orca", "ultra"], ["orca", "math"]])
    plan = make_plan(pairs_of([1, 2, 3], gamma=[1, -1, -1, 1, 1, -1]), settings)
    assert contents(plan) == ["source orca + math", "source orca + ultra"]
    assert plan.measured["share_gamma_above_0"] == {"orca + ultra": 1 / 3, "orca + math": 0.75}
    assert plan.step_of[plan.rows == 0].tolist() == [1, 2]


def test_an_empty_source_is_named():
    with pytest.raises(PartitionError, match=r"step 2 \(source ultra\) has none of the 3 pairs"):
        make_plan(pairs_of([2, 0, 1]), PartitionSettings())


def test_easy_first_puts_the_highest_share_of_positive_gamma_first():
    # A share counts pairs: neither size nor magnitude matters, and a gamma of 0 is not above 0.
    gamma = [9.0, -1.0, -1.0, 1.0, 1.0, -99.0, 0.0, 0.5]
    plan = make_plan(pairs_of([3, 3, 2], gamma=gamma), PartitionSettings(order="easy_first"))
    assert contents(plan) == ["source ultra", "source math", "source orca"]
    assert plan.step_of.tolist() == [3, 3, 3, 1, 1, 1, 2, 2]
    shares = {"ultra": 2 / 3, "math": 1 / 2, "orca": 1 / 3}
    assert plan.to_dict()["measured"] == {"share_gamma_above_0": shares}


def test_easy_first_keeps_the_given_order_of_ties():
    gamma = [1, -1, 1, 1, -1, -1, 1, 1]
    plan = make_plan(pairs_of([2, 4, 2], gamma=gamma), PartitionSettings(order="easy_first"))
    assert contents(plan) == ["source math", "source orca", "source ultra"]


def test_easy_first_takes_the_share_over_all_pairs_of_a_group():
    settings = PartitionSettings(order="easy_first", groups=[["orca", "math"], ["ultra"]])
    plan = make_plan(pairs_of([1, 2, 3], gamma=[1, 1, -1, -1, -1, -1]), settings)
    assert contents(plan) == ["source ultra", "source orca + math"]
    assert plan.measured["share_gamma_above_0"] == {"ultra": 0.5, "orca + math": 0.25}


def test_easy_first_asks_for_gamma_to_be_measured():
    with pytest.raises(PartitionError, match="needs gamma of every pair: measure it under M_0"):
        make_plan(pairs_of([1, 1]), PartitionSettings(order="easy_first"))


@pytest.mark.parametrize("missing", [float("nan"), float("inf")])
def test_easy_first_names_the_sources_with_pairs_without_gamma(missing):
    pairs = pairs_of([1, 2, 1], gamma=[1, 1, missing, missing])
    with pytest.raises(PartitionError, match=r"2 of 4 pairs .*\(sources ultra, math\)"):
        make_plan(pairs, PartitionSettings(order="easy_first"))


def test_gamma_plays_no_part_in_the_given_order():
    plan = make_plan(pairs_of([1, 1], gamma=[float("nan"), 1]), PartitionSettings())
    assert contents(plan) == ["source orca", "source ultra"]
    assert plan.measured == {}
