import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions import Pairs, PartitionError, ids_from_hex, ids_to_hex, ordering_key
from partitions.pairs import argsort_by, argsort_ids, run_starts

HEX_IDS = st.lists(st.text("0123456789abcdef", min_size=32, max_size=32), max_size=20)


def column(*values, dtype=np.int32):
    return np.array(values, dtype=dtype)


def two_pairs(**changes):
    columns = {
        "ids": ids_from_hex(["0" * 32, "f" * 32]),
        "source": column(0, 1),
        "source_names": ("orca", "ultra"),
    }
    return Pairs(**(columns | changes))


@given(HEX_IDS)
def test_ids_survive_the_way_from_hex_and_back(values):
    assert ids_to_hex(ids_from_hex(values)) == values


@given(HEX_IDS)
def test_ids_sort_as_their_hex_digits_do(values):
    ids = ids_from_hex(values)
    assert ids_to_hex(ids[argsort_ids(ids)]) == sorted(values)


def test_ids_are_read_from_a_numpy_array_of_strings_too():
    values = ["0123456789abcdef" * 2, "f" * 32]
    assert ids_to_hex(ids_from_hex(np.array(values))) == values


@pytest.mark.parametrize("bad", ["", "0" * 31, "0" * 33])
def test_an_id_of_the_wrong_length_is_refused_with_its_row(bad):
    with pytest.raises(PartitionError, match=r"\(row 1\) is not 32 hex digits"):
        ids_from_hex(["0" * 32, bad])


@pytest.mark.parametrize("bad", ["g" * 32, "é" * 32, " " * 32])
def test_an_id_that_is_not_hex_is_refused(bad):
    with pytest.raises(PartitionError, match="rows 0-0 is not hex"):
        ids_from_hex([bad])


def test_the_ordering_key_stays_what_it_is():
    ids = ids_from_hex(["0" * 32, "0123456789abcdef" * 2, "f" * 32])
    assert [f"{key:016x}" for key in ordering_key(ids, 42).tolist()] == GOLDEN_KEYS


GOLDEN_KEYS = ["c5a57e8172f0a9d2", "dd33ebc858332707", "5b40ef378aba166a"]


@pytest.mark.parametrize("half", [0, 1])
def test_the_ordering_key_spreads_evenly_over_ids_that_differ_in_one_half(half):
    ids = np.zeros((1 << 14, 2), dtype=np.uint64)
    ids[:, half] = np.arange(1 << 14)
    keys = ordering_key(ids, 0)
    bits = (keys[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    # Six standard deviations of a fair coin, for each of 64 bits.
    assert abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / 128
    assert len(np.unique(keys)) == len(keys)


def test_another_seed_gives_another_order_and_leaves_the_ids_alone():
    ids = np.random.default_rng(0).integers(2**64, size=(1000, 2), dtype=np.uint64)
    before = ids.copy()
    orders = [argsort_by(ordering_key(ids, seed), ids) for seed in (0, 1, 2**64 - 1)]
    assert (ids == before).all()
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        # Two random orders agree on one place in the mean.
        assert (orders[a] == orders[b]).sum() < 10


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=30), st.randoms())
def test_ties_of_the_key_are_broken_by_id(rows, random):
    random.shuffle(rows)
    table = np.array(rows, dtype=np.uint64)
    order = argsort_by(table[:, 0], table[:, 1:])
    assert [tuple(row) for row in table[order].tolist()] == sorted(rows)


def test_runs_of_equal_rows_are_found():
    assert run_starts(column(3, 3, 1, 1, 1, 3)).tolist() == [0, 2, 5]
    assert run_starts(np.array([[1, 2], [1, 2], [1, 3]])).tolist() == [0, 2]
    assert run_starts(column()).tolist() == []


def test_duplicate_ids_are_refused_with_an_example():
    twice = ids_from_hex(["a" * 32, "b" * 32, "a" * 32])
    with pytest.raises(PartitionError, match=rf"1 of 3 pairs repeat .*{'a' * 32}"):
        Pairs(ids=twice, source=column(0, 0, 1), source_names=("orca", "ultra"))


def test_ids_that_share_one_half_are_no_duplicates():
    ids = np.array([[1, 2], [1, 3], [2, 2]], dtype=np.uint64)
    assert len(Pairs(ids=ids, source=column(0, 0, 0), source_names=("orca",))) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.zeros((2, 3), np.uint64)}, r"ids must be uint64\[n, 2\]"),
        ({"ids": np.array([[0, 1], [2, 3]])}, r"ids must be uint64\[n, 2\], not int64"),
        ({"source": column(0)}, "source must be 2 signed integers"),
        ({"source": column(0, 1, dtype=float)}, "source must be 2 signed integers"),
        ({"source": column(0, 2)}, "codes of source go from 0 to 1, not from 0 to 2"),
        ({"source": column(-1, 1)}, "codes of source go from 0 to 1, not from -1 to 1"),
        ({"source_names": ("orca", "orca")}, "two sources have the same name"),
        ({"strata": {"topic": column(0, -1)}}, "codes of stratum `topic` go from 0, not from -1"),
        ({"strata": {"topic": column(0, 1, 1)}}, "stratum `topic` must be 2 signed integers"),
        ({"strata": {"source": column(0, 1)}}, "a stratum named `source`"),
        ({"features": {"gamma": column(1, 2)}}, "feature `gamma` must be 2 floats"),
    ],
)
def test_columns_that_cannot_be_are_refused(changes, message):
    with pytest.raises(PartitionError, match=message):
        two_pairs(**changes)
