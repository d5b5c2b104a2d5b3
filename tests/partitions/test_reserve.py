import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions import PartitionError, most_reserved, reserve_mask, reserve_size

RULE = {"fraction": 0.03, "min_pairs": 64, "max_fraction": 0.10, "key": "sdpo"}
HALF = {"fraction": 0.5, "min_pairs": 0, "max_fraction": 0.5, "key": "sdpo"}


def ids_of(prompts):
    """Ids of prompts given as small numbers, spread over both halves."""
    prompts = np.asarray(prompts, dtype=np.uint64)
    return np.stack([prompts // np.uint64(4), prompts % np.uint64(4)], axis=-1).reshape(-1, 2)


def reserve(prompts, source, *, n_sources=None, **rule):
    source = np.asarray(source, dtype=np.int32)
    n_sources = n_sources or int(source.max(initial=0)) + 1
    return reserve_mask(ids_of(prompts), source, n_sources=n_sources, **(RULE | rule))


@st.composite
def data_sets(draw):
    """Prompts and sources of pairs; prompts repeat within and across sources."""
    n = draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    prompts = rng.integers(draw(st.integers(1, 150)), size=n)
    return prompts, rng.integers(draw(st.integers(1, 3)), size=n)


rules = st.fixed_dictionaries(
    {
        "fraction": st.sampled_from([0.0, 0.03, 0.3, 0.9]),
        "min_pairs": st.sampled_from([0, 4, 64]),
        "max_fraction": st.sampled_from([0.0, 0.1, 0.5]),
        "key": st.sampled_from(["sdpo", "other", ""]),
    }
)


@pytest.mark.parametrize(
    ("pairs", "size"),
    [
        (0, 0),
        (1, 1),
        (10, 1),
        (100, 10),
        (639, 63),
        (640, 64),
        (2133, 64),
        (2134, 65),
        (60_917, 1828),
    ],
)
def test_the_size_is_3_percent_or_64_pairs_but_then_at_most_10_percent(pairs, size):
    assert reserve_size(pairs, fraction=0.03, min_pairs=64, max_fraction=0.10) == size


def test_sizes_are_taken_as_decimals():
    # In binary 0.07 * 100 is above 7, and 0.29 * 100 is below 29.
    assert reserve_size(100, fraction=0.07, min_pairs=0, max_fraction=0.1) == 7
    assert reserve_size(100, fraction=0.0, min_pairs=64, max_fraction=0.29) == 29


def test_pairs_of_different_prompts_are_reserved_to_the_exact_size():
    mask = reserve(range(3000), [0] * 1000 + [1] * 2000)
    assert [mask[:1000].sum(), mask[1000:].sum()] == [64, 64]
    assert reserve(range(3000), [0] * 3000).sum() == 90


@given(data_sets(), rules)
def test_whole_prompts_are_reserved_in_every_source(data, rule):
    prompts, source = data
    mask = reserve(prompts, source, **rule)
    assert not set(prompts[mask]) & set(prompts[~mask])


@given(data_sets(), rules)
def test_a_source_alone_reserves_what_is_wanted_and_no_prompt_more(data, rule):
    prompts, _ = data
    mask = reserve(prompts, np.zeros(len(prompts)), **rule)
    sizes = {name: rule[name] for name in ("fraction", "min_pairs", "max_fraction")}
    wanted = reserve_size(len(prompts), **sizes)
    pairs_of_prompt = np.bincount(prompts)
    # The last prompt taken is one of those reserved: without it there were too few.
    assert mask.sum() - max(pairs_of_prompt[prompts[mask]], default=0) < max(wanted, 1)
    if mask.sum() < wanted:
        assert len(set(prompts[~mask])) == 1


@given(data_sets(), rules)
def test_something_is_left_to_train_on_whatever_the_rule(data, rule):
    prompts, _ = data
    assert not reserve(prompts, np.zeros(len(prompts)), **rule).all()


@given(data_sets(), rules, st.integers(0, 2**32))
def test_the_order_of_rows_does_not_change_the_reserve(data, rule, seed):
    prompts, source = data
    rows = np.random.default_rng(seed).permutation(len(prompts))
    n_sources = int(source.max()) + 1
    mask = reserve(prompts, source, n_sources=n_sources, **rule)
    assert (reserve(prompts[rows], source[rows], n_sources=n_sources, **rule) == mask[rows]).all()


@given(data_sets(), data_sets(), rules)
def test_a_new_source_releases_no_prompt_and_reserves_only_its_own(old, new, rule):
    prompts, source = old
    new_prompts, _ = new
    mask = reserve(prompts, source, **rule)
    added = np.full(len(new_prompts), source.max() + 1)
    both = reserve(np.append(prompts, new_prompts), np.append(source, added), **rule)
    alone = reserve(new_prompts, np.zeros(len(new_prompts)), **rule)
    expected = set(prompts[mask]) | set(new_prompts[alone])
    assert set(np.append(prompts, new_prompts)[both]) == expected


def test_a_prompt_reserved_in_one_source_is_reserved_in_another_that_would_not():
    first, second = np.flatnonzero(reserve(range(20), [0] * 20, **HALF))[:2]
    by_itself = reserve([first, second], [0, 0], **HALF)
    beside_the_other = reserve([*range(20), first, second], [0] * 20 + [1, 1], **HALF)
    assert by_itself.sum() == 1
    assert beside_the_other[20:].all()


def test_a_source_of_one_prompt_has_no_reserve_of_its_own():
    assert not reserve([5] * 50, [0] * 50, **HALF).any()


def test_two_prompts_are_one_to_train_on_and_one_to_probe():
    assert reserve([5, 6], [0, 0], fraction=0.9).sum() == 1


def test_nothing_is_reserved_where_the_rule_asks_for_nothing():
    assert not reserve(range(500), [0] * 500, fraction=0.0, min_pairs=0).any()
    assert not reserve(range(500), [0] * 500, fraction=0.0, max_fraction=0.0).any()


@given(data_sets(), st.integers(1, 40))
def test_a_count_takes_that_many_pairs_of_every_source_by_whole_prompts(data, count):
    prompts, source = data
    for code in range(int(source.max()) + 1):
        own = prompts[source == code]
        if not len(own):
            continue
        alone = np.zeros(len(own), dtype=np.int32)
        mask = reserve(own, alone, pairs=count)
        (most,) = most_reserved(ids_of(own), alone, n_sources=1, key="sdpo")
        assert mask.sum() >= min(count, most)
        assert mask.sum() - max(np.bincount(own)[own[mask]], default=0) < count
        assert not set(own[mask]) & set(own[~mask])
        assert len(set(own[~reserve(own, alone, pairs=10**6)])) == 1
        assert reserve(own, alone, pairs=10**6).sum() == most


def test_a_count_of_pairs_of_different_prompts_is_exact_whatever_the_shares():
    mask = reserve(range(300), [0] * 100 + [1] * 200, pairs=37)
    assert [mask[:100].sum(), mask[100:].sum()] == [37, 37]


def test_no_pairs_have_no_reserve():
    assert reserve([], [], n_sources=2).shape == (0,)


def test_a_source_without_pairs_reserves_nothing():
    assert reserve(range(100), [1] * 100, n_sources=3).sum() == 10


def test_another_key_reserves_other_prompts():
    masks = [reserve(range(5000), [0] * 5000, key=key) for key in ("sdpo", "sdpo2")]
    # 150 of 5,000 twice: 4.5 in common in the mean.
    assert (masks[0] & masks[1]).sum() < 25


def test_the_reserved_prompts_stay_what_they_are():
    reserved = reserve(range(40), [0] * 40)
    assert np.flatnonzero(reserved).tolist() == GOLDEN_RESERVE


GOLDEN_RESERVE = [15, 18, 20, 23]


@pytest.mark.parametrize(
    "wrong", [{"fraction": 1.0}, {"fraction": -0.1}, {"max_fraction": 1.0}, {"min_pairs": -1}]
)
def test_a_rule_that_cannot_be_is_refused(wrong):
    with pytest.raises(PartitionError, match="a reserve needs 0 <= fraction < 1"):
        reserve(range(10), [0] * 10, **wrong)


def test_columns_that_cannot_be_are_refused():
    with pytest.raises(PartitionError, match="with one source each"):
        reserve(range(10), [0] * 9)
    with pytest.raises(PartitionError, match="codes of source go from 0 to 0, not from 0 to 1"):
        reserve(range(2), [0, 1], n_sources=1)
