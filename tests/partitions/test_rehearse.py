"""Earlier pairs in later steps: which, how many, and that nothing else moves."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import partitions
from partitions import Pairs, PartitionError, PartitionSettings, extend_plan, make_plan

FRACTIONS = (0.5, 0.3, 0.2)


def make_pairs(count: int, *, seed: int = 0) -> Pairs:
    generator = np.random.default_rng(seed)
    return Pairs(
        ids=generator.integers(2**64, size=(count, 2), dtype=np.uint64),
        source=generator.integers(2, size=count, dtype=np.int32),
        source_names=("orca", "ultra"),
        features={"gamma": generator.normal(size=count)},
    )


def entries(plan: partitions.Plan) -> set[tuple[int, int]]:
    return set(zip(plan.rows.tolist(), plan.step_of.tolist(), strict=True))


def settings_of(strategy: str = "stratified", **changes: object) -> PartitionSettings:
    return replace(PartitionSettings(strategy=strategy, fractions=FRACTIONS), **changes)


@given(
    st.integers(40, 200),
    st.floats(0.01, 1),
    st.integers(0, 2**64 - 1),
    st.sampled_from(["natural", "stratified", "random"]),
)
def test_a_share_of_each_steps_own_pairs_is_added_from_the_steps_before_it(
    count: int, share: float, seed: int, strategy: str
) -> None:
    pairs = make_pairs(count)
    plain = make_plan(pairs, settings_of(strategy, seed=seed))
    mixed = make_plan(pairs, settings_of(strategy, seed=seed, rehearse=share))
    assert entries(plain) <= entries(mixed), "no pair leaves its step"
    assert len(entries(mixed)) == len(mixed.rows), "and none is in a step twice"
    first_of = dict(zip(plain.rows.tolist(), plain.step_of.tolist(), strict=True))
    for step, before in zip(mixed.steps, plain.steps, strict=True):
        again = [row for row, at in entries(mixed) - entries(plain) if at == step.step]
        pool = sum(1 for at in first_of.values() if at < step.step)
        assert len(again) == min(round(share * before.pairs), pool)
        assert all(first_of[row] < step.step for row in again)
        assert step.pairs == before.pairs + len(again) == sum(step.sources.values())
        said = f" + {len(again)} earlier pairs" if again else ""
        assert step.contents == before.contents + said


def test_the_draw_does_not_depend_on_the_order_of_rows_and_is_another_for_each_step() -> None:
    pairs, chosen = make_pairs(300), settings_of(rehearse=0.5)
    turned = np.random.default_rng(1).permutation(300)
    shuffled = Pairs(
        ids=pairs.ids[turned], source=pairs.source[turned], source_names=pairs.source_names
    )
    plan = make_plan(pairs, chosen)
    assert make_plan(shuffled, chosen).to_dict() == plan.to_dict()
    plain = entries(make_plan(pairs, settings_of()))
    second, third = ({row for row, at in entries(plan) - plain if at == step} for step in (2, 3))
    assert second
    assert third
    assert not third <= second
    assert make_plan(pairs, replace(chosen, seed=43)).to_dict() != plan.to_dict()


def test_a_plan_without_rehearsal_says_nothing_of_it() -> None:
    pairs = make_pairs(60)
    assert "rehearse" not in make_plan(pairs, settings_of()).to_dict()["settings"]
    assert make_plan(pairs, settings_of(rehearse=0.2)).to_dict()["settings"]["rehearse"] == 0.2


def test_where_there_is_one_step_it_has_no_effect_and_that_is_told() -> None:
    plan = make_plan(make_pairs(60), PartitionSettings(strategy="single", rehearse=0.2))
    assert plan.ignored_settings == ("rehearse",)
    assert len(plan.rows) == 60
    assert make_plan(make_pairs(60), settings_of(rehearse=0.2)).ignored_settings == ()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(PartitionError, match=r"partition\.rehearse must be from 0 to 1"):
        settings_of(rehearse=share)


def test_a_step_that_a_chain_grows_by_meets_earlier_pairs_too() -> None:
    pairs = make_pairs(120)
    old = Pairs(ids=pairs.ids[:80], source=pairs.source[:80], source_names=pairs.source_names)
    chosen = settings_of(rehearse=0.25)
    carried = make_plan(old, chosen)
    grown = extend_plan(
        pairs,
        chosen,
        carried_rows=carried.rows,
        carried_step=carried.step_of,
        carried=carried.steps,
        measured={},
    )
    assert grown.steps[:3] == carried.steps, "what was trained stays as it was"
    members = {row for row, at in entries(grown) if at == 4}
    assert members >= set(range(80, 120))
    assert len(members) == 50
    assert grown.steps[3].pairs == sum(grown.steps[3].sources.values()) == 50
    assert grown.steps[3].contents.startswith("new pairs of ")
    assert grown.steps[3].contents.endswith(" + 10 earlier pairs")
