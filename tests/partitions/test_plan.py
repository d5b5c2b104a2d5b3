import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions import (
    Assignment,
    Pairs,
    PartitionError,
    PartitionSettings,
    extend_plan,
    get,
    ids_from_hex,
    make_plan,
    prompt_overlap,
)
from partitions import plan as plan_module

IDS = ["00" * 15 + "02", "00" * 15 + "01", "ff" * 16, "01" + "00" * 15]


def four_pairs(rows=(0, 1, 2, 3)):
    rows = list(rows)
    return Pairs(
        ids=ids_from_hex(IDS)[rows],
        source=np.array([0, 0, 1, 0], dtype=np.int32)[rows],
        source_names=("orca", "ultra"),
    )


def test_a_digest_is_over_the_sorted_ids_of_the_step():
    first, second = make_plan(four_pairs(), PartitionSettings()).steps
    assert first.digest == hashlib.sha256(bytes.fromhex(IDS[1] + IDS[0] + IDS[3])).hexdigest()
    assert second.digest == hashlib.sha256(b"\xff" * 16).hexdigest()


def test_a_digest_stays_what_it_is():
    digest = make_plan(four_pairs(), PartitionSettings()).steps[0].digest
    assert digest == GOLDEN_DIGEST


GOLDEN_DIGEST = "934b01e6431caedacb69bb84a252e809382588f5c8e2063e4d905a441ed1aa35"


def test_a_long_step_has_the_digest_of_all_its_ids(monkeypatch):
    whole = make_plan(four_pairs(), PartitionSettings()).to_dict()
    monkeypatch.setattr(plan_module, "_CHUNK", 2)
    assert make_plan(four_pairs(), PartitionSettings()).to_dict() == whole


def test_another_pair_in_a_step_is_another_digest():
    without = make_plan(four_pairs([0, 1, 2]), PartitionSettings()).steps
    whole = make_plan(four_pairs(), PartitionSettings()).steps
    assert without[0].digest != whole[0].digest
    assert without[1].digest == whole[1].digest


def test_the_stored_plan_says_all_about_the_draw_and_every_step():
    stored = make_plan(four_pairs(), PartitionSettings(seed=7)).to_dict()
    assert stored["strategy"] == "natural"
    assert stored["settings"] == {
        "order": "given",
        "groups": [],
        "fractions": [0.1667, 0.8333],
        "strata": ["source"],
        "per_token": False,
        "seed": 7,
    }
    assert stored["pairs"] == 4
    assert [{**step, "digest": "…"} for step in stored["steps"]] == [
        {
            "step": 1,
            "contents": "source orca",
            "pairs": 3,
            "sources": {"orca": 3},
            "digest": "…",
        },
        {
            "step": 2,
            "contents": "source ultra",
            "pairs": 1,
            "sources": {"ultra": 1},
            "digest": "…",
        },
    ]


def test_settings_without_effect_are_listed():
    settings = PartitionSettings(
        strategy="random", order="easy_first", fractions=(0.5, 0.5), strata=("topic",)
    )
    assert make_plan(four_pairs(), settings).ignored_settings == ("order", "strata")
    natural = replace(settings, strategy="natural", order="given")
    assert make_plan(four_pairs(), natural).ignored_settings == ("fractions", "strata")


def test_no_pairs_are_refused():
    with pytest.raises(PartitionError, match="there are no pairs to partition"):
        make_plan(four_pairs([]), PartitionSettings())


@pytest.mark.parametrize(
    ("step_of", "message"),
    [
        (np.ones(3, np.int32), r"returned int32\[3\] where int32\[4\] was due"),
        (np.ones(4, np.int64), r"returned int64\[4\]"),
        (np.array([0, 1, 2, 1], np.int32), "made 2 steps but assigned pairs to steps 0 to 2"),
        (np.array([3, 1, 2, 1], np.int32), "made 2 steps but assigned pairs to steps 1 to 3"),
        (np.ones(4, np.int32), r"step 2 \(second\) has none of the 4 pairs: add pairs"),
        (np.full(4, 2, np.int32), r"step 1 \(first\) has none"),
    ],
)
def test_a_strategy_that_breaks_the_rules_is_caught(monkeypatch, step_of, message):
    broken = replace(
        get("natural"),
        name="broken",
        assign=lambda pairs, settings: Assignment(step_of, ("first", "second")),
    )
    monkeypatch.setattr(plan_module, "get", lambda name: broken)
    with pytest.raises(PartitionError, match=message):
        make_plan(four_pairs(), PartitionSettings(strategy="broken"))


def prompt_ids(values):
    values = np.array(values, dtype=np.uint64)
    return np.stack([values % 2, values], axis=-1).reshape(-1, 2)


def test_prompts_in_several_partitions_are_counted_by_the_steps_they_are_in():
    prompts = [5, 5, 5, 6, 6, 7, 7, 8, 9, 9, 4]
    step_of = np.array([1, 2, 2, 1, 1, 2, 1, 3, 1, 3, 2], dtype=np.int32)
    assert prompt_overlap(prompt_ids(prompts), step_of) == [
        {"steps": [1, 2], "prompts": 2, "pairs": 5},
        {"steps": [1, 3], "prompts": 1, "pairs": 2},
    ]


def test_prompts_that_differ_are_no_overlap():
    assert prompt_overlap(prompt_ids([1, 2, 3]), np.array([1, 2, 1], dtype=np.int32)) == []
    assert prompt_overlap(prompt_ids([]), np.array([], dtype=np.int32)) == []


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 3)), max_size=40))
def test_the_overlap_is_what_counting_by_hand_gives(rows):
    steps_of, pairs_of = {}, {}
    for prompt, step in rows:
        steps_of.setdefault(prompt, set()).add(step)
        pairs_of[prompt] = pairs_of.get(prompt, 0) + 1
    expected = {}
    for prompt, steps in steps_of.items():
        if len(steps) > 1:
            prompts, pairs = expected.get(tuple(sorted(steps)), (0, 0))
            expected[tuple(sorted(steps))] = (prompts + 1, pairs + pairs_of[prompt])
    overlaps = prompt_overlap(
        prompt_ids([prompt for prompt, _ in rows]),
        np.array([step for _, step in rows], dtype=np.int32),
    )
    assert [(tuple(o["steps"]), (o["prompts"], o["pairs"])) for o in overlaps] == sorted(
        expected.items()
    )


# --- a plan that grows


def only_orca(rows):
    whole = four_pairs(rows)
    return replace(whole, source_names=("orca",))


def extended(carried_step):
    before = make_plan(only_orca([0, 1]), PartitionSettings())
    carried = np.array(carried_step, dtype=np.int32)
    after = extend_plan(
        four_pairs(),
        PartitionSettings(),
        carried_rows=np.flatnonzero(carried),
        carried_step=carried[carried > 0],
        carried=before.steps,
        measured={"of": {"what": 1.0}},
    )
    return before, after


def test_a_plan_that_grows_keeps_its_steps_and_gets_one_of_what_is_new():
    before, after = extended([1, 1, 0, 0])
    assert after.steps[0] == before.steps[0]
    new = after.steps[1]
    assert (new.step, new.pairs, dict(new.sources)) == (2, 2, {"orca": 1, "ultra": 1})
    assert new.contents == "new pairs of orca + ultra"
    assert new.digest == hashlib.sha256(bytes.fromhex(IDS[3] + IDS[2])).hexdigest()
    assert after.step_of.tolist() == [1, 1, 2, 2]
    assert after.measured == {"of": {"what": 1.0}}


@pytest.mark.parametrize(
    ("carried_step", "named"),
    [
        ([1, 1, 1, 1], "no pair is new"),
        ([1, 0, 0, 0], "step 1 would not have the pairs that it was trained on"),
    ],
)
def test_a_plan_that_cannot_grow_says_why(carried_step, named):
    with pytest.raises(PartitionError, match=named):
        extended(carried_step)


def test_a_pair_of_several_steps_keeps_them_when_the_plan_grows():
    twice = PartitionSettings(groups=[["orca"], ["orca"]])
    before = make_plan(only_orca([0, 1]), twice)
    after = extend_plan(
        four_pairs(),
        twice,
        carried_rows=before.rows,
        carried_step=before.step_of,
        carried=before.steps,
        measured={},
    )
    assert after.rows.tolist() == [0, 0, 1, 1, 2, 3]
    assert after.step_of.tolist() == [1, 2, 1, 2, 3, 3]
    assert after.steps[:2] == before.steps


@pytest.mark.parametrize(
    ("rows", "steps", "message"),
    [
        ([0, 1, 2], [1, 1, 1], "leaves 1 of 4 pairs without a step"),
        ([0, 1, 2, 3, 3], [1, 1, 1, 2, 2], "into one step more than once: 1"),
        ([0, 1, 2, 4], [1, 1, 1, 1], "names rows that are none of the 4 pairs"),
        ([0, 1, 2, 3], [1, 1, 2], r"int32\[4\] was due"),
    ],
)
def test_a_table_of_pair_and_step_that_does_not_hold_up_is_refused(
    monkeypatch, rows, steps, message
):
    def assign(pairs, settings):
        return Assignment(
            step_of=np.array(steps, dtype=np.int32), contents=("a", "b"), rows=np.array(rows)
        )

    broken = replace(get("single"), name="broken", assign=assign)
    monkeypatch.setattr(plan_module, "get", lambda name: broken)
    with pytest.raises(PartitionError, match=message):
        make_plan(four_pairs(), PartitionSettings(strategy="broken"))
