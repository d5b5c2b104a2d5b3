"""What holds for every registered strategy, over generated pairs and settings."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import partitions
from partitions import Pairs, PartitionSettings, make_plan

every_strategy = pytest.mark.parametrize("strategy", partitions.names())


@st.composite
def partition_settings(draw, strategy, sources):
    """Settings that can be followed: no share so small that its step could be empty."""
    owner = [draw(st.integers(0, len(sources) - 1)) for _ in sources]
    groups = [[s for s, o in zip(sources, owner, strict=True) if o == g] for g in set(owner)]
    weights = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    return PartitionSettings(
        strategy=strategy,
        order=draw(st.sampled_from(["given", "easy_first", "hard_first"])),
        groups=draw(st.sampled_from([(), groups])),
        fractions=[weight / sum(weights) for weight in weights],
        strata=draw(st.sampled_from([(), ("source",), ("topic",), ("source", "topic")])),
        per_token=draw(st.booleans()),
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@st.composite
def problems(draw, strategy, *, min_pairs=60, max_pairs=300):
    """Pairs in a few sources, each with at least one pair, and settings to partition them by."""
    sources = draw(st.permutations(["orca", "ultra", "helpful", "math"]))
    sources = tuple(sources[: draw(st.integers(1, 4))])
    n = draw(st.integers(min_pairs, max_pairs))
    chosen = draw(partition_settings(strategy, sources))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    source = rng.integers(len(sources), size=n, dtype=np.int32)
    source[: len(sources)] = np.arange(len(sources))
    features = partitions.get(strategy).needs(chosen) | {"gamma"}
    pairs = Pairs(
        ids=rng.integers(2**64, size=(n, 2), dtype=np.uint64),
        source=source,
        source_names=sources,
        strata={"topic": rng.geometric(0.3, size=n).astype(np.int32)},
        # Rounded, so that many pairs share a value, as ratings do.
        features={name: rng.normal(size=n).round(1) for name in features},
    )
    return pairs, chosen


def rows_of(pairs, rows):
    """The same pairs in another order, or some of them."""
    return Pairs(
        ids=pairs.ids[rows],
        source=pairs.source[rows],
        source_names=pairs.source_names,
        strata={name: codes[rows] for name, codes in pairs.strata.items()},
        features={name: values[rows] for name, values in pairs.features.items()},
    )


@every_strategy
@given(data=st.data())
def test_partitions_are_disjoint_complete_and_not_empty(strategy, data):
    pairs, chosen = data.draw(problems(strategy))
    plan = make_plan(pairs, chosen)
    ids_of_step = [
        set(map(tuple, pairs.ids[plan.step_of == step.step].tolist())) for step in plan.steps
    ]
    assert [step.step for step in plan.steps] == list(range(1, len(plan.steps) + 1))
    assert all(ids_of_step)
    assert sum(map(len, ids_of_step)) == len(pairs)
    assert set.union(*ids_of_step) == set(map(tuple, pairs.ids.tolist()))
    assert [step.pairs for step in plan.steps] == [len(ids) for ids in ids_of_step]


@every_strategy
@given(data=st.data())
def test_the_order_of_rows_does_not_change_the_plan(strategy, data):
    pairs, chosen = data.draw(problems(strategy))
    rows = np.random.default_rng(data.draw(st.integers(0, 2**32))).permutation(len(pairs))
    plan, shuffled = make_plan(pairs, chosen), make_plan(rows_of(pairs, rows), chosen)
    assert (shuffled.step_of == plan.step_of[rows]).all()
    assert shuffled.to_dict() == plan.to_dict()


@every_strategy
@given(data=st.data())
def test_the_numbering_of_strata_does_not_change_the_plan(strategy, data):
    pairs, chosen = data.draw(problems(strategy))
    topic = pairs.strata["topic"]
    renumbered = np.random.default_rng(0).permutation(topic.max() + 1)[topic] * 1000
    other = replace(pairs, strata={"topic": renumbered})
    assert (make_plan(other, chosen).step_of == make_plan(pairs, chosen).step_of).all()


@every_strategy
@given(data=st.data())
def test_another_seed_gives_another_draw_where_the_strategy_draws(strategy, data):
    pairs, chosen = data.draw(problems(strategy, min_pairs=200))
    plan = make_plan(pairs, chosen)
    other = make_plan(pairs, replace(chosen, seed=chosen.seed ^ 1))
    draws = "seed" in partitions.get(strategy).uses and len(plan.steps) > 1
    assert (other.step_of != plan.step_of).any() == draws


@every_strategy
@given(data=st.data())
@settings(max_examples=30)
def test_counts_per_source_add_up_and_the_plan_is_json(strategy, data):
    pairs, chosen = data.draw(problems(strategy))
    plan = make_plan(pairs, chosen)
    stored = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert stored == plan.to_dict()
    for code, name in enumerate(pairs.source_names):
        in_steps = [step["sources"].get(name, 0) for step in stored["steps"]]
        assert sum(in_steps) == np.count_nonzero(pairs.source == code)
    assert [sum(step["sources"].values()) for step in stored["steps"]] == [
        step.pairs for step in plan.steps
    ]
