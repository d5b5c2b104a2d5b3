import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo.store.logp_cache import LogpCache

from ..training_helpers.models import cpu_key

KEY = cpu_key("m" * 64, layout="rows")


def digests(*names: object) -> list[bytes]:
    return [hashlib.blake2b(str(name).encode(), digest_size=16).digest() for name in names]


def values(*numbers: float) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


@pytest.fixture
def cache(tmp_path):
    return LogpCache(tmp_path, KEY)


def test_an_empty_cache_has_nothing(cache):
    found = cache.lookup(digests("a", "b"))
    assert found.present.tolist() == [False, False]
    assert np.isnan(found.rejected).all()
    assert cache.lookup([]).present.tolist() == []


def test_rows_come_back_bit_for_bit_in_the_order_asked(cache):
    cache.add(digests("a", "b", "c"), values(-0.1, -1e-30, -3e8), values(-1, -2, -3))
    found = cache.lookup(digests("c", "a", "c", "b"))
    assert found.chosen.tobytes() == values(-3e8, -0.1, -3e8, -1e-30).tobytes()
    assert found.rejected.tolist() == [-3, -1, -3, -2]
    assert found.present.all()


def test_a_cache_that_is_half_full_is_half_used(cache, tmp_path):
    cache.add(digests("a", "c"), values(-1, -3), values(-10, -30))
    found = LogpCache(tmp_path, KEY).lookup(digests("a", "b", "c", "d"))
    assert found.present.tolist() == [True, False, True, False]
    assert found.chosen[found.present].tolist() == [-1, -3]


def test_two_writers_see_what_the_other_wrote(tmp_path):
    one, other = LogpCache(tmp_path, KEY), LogpCache(tmp_path, KEY)
    one.add(digests("a"), values(-1), values(-2))
    assert other.lookup(digests("a", "b")).present.tolist() == [True, False]
    other.add(digests("b"), values(-3), values(-4))
    assert one.lookup(digests("a", "b")).chosen.tolist() == [-1, -3]


def test_two_writers_of_the_same_rows_agree(tmp_path):
    caches = [LogpCache(tmp_path, KEY) for _ in range(2)]
    for cache in caches:
        cache.add(digests("a", "b"), values(-1, -2), values(-3, -4))
    assert caches[0].lookup(digests("b")).chosen.tolist() == [-2]
    assert len(list(caches[0].folder.glob("*.parquet"))) == 1


def test_a_row_that_stands_in_two_parts_is_found_once(cache):
    cache.add(digests("a", "b"), values(-1, -2), values(-1, -2))
    cache.add(digests("b", "c"), values(-2, -3), values(-2, -3))
    assert cache.lookup(digests("a", "b", "c")).chosen.tolist() == [-1, -2, -3]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_damaged_part_is_left_out_and_named(tmp_path, damage):
    cache = LogpCache(tmp_path, KEY)
    cache.add(digests("a"), values(-1), values(-2))
    (part,) = cache.folder.glob("*.parquet")
    cache.add(digests("b"), values(-3), values(-4))
    damage(part)
    again = LogpCache(tmp_path, KEY)
    assert again.lookup(digests("a", "b")).present.tolist() == [False, True]
    assert again.damaged == [part]


def test_a_damaged_part_that_is_computed_again_is_read(tmp_path):
    cache = LogpCache(tmp_path, KEY)
    cache.add(digests("a"), values(-1), values(-2))
    flip(next(cache.folder.glob("*.parquet")))
    mine, other = LogpCache(tmp_path, KEY), LogpCache(tmp_path, KEY)
    assert not mine.lookup(digests("a")).present.any()
    assert not other.lookup(digests("a")).present.any()
    mine.add(digests("a"), values(-1), values(-2))
    assert mine.lookup(digests("a")).chosen.tolist() == [-1]
    assert other.lookup(digests("a")).chosen.tolist() == [-1]


def test_a_damaged_part_is_named_once(tmp_path):
    cache = LogpCache(tmp_path, KEY)
    cache.add(digests("a"), values(-1), values(-2))
    flip(next(cache.folder.glob("*.parquet")))
    again = LogpCache(tmp_path, KEY)
    for _ in range(2):
        again.lookup(digests("a"))
    assert len(again.damaged) == 1


def test_a_part_that_is_not_finished_is_not_read(cache):
    cache.add(digests("a"), values(-1), values(-2))
    (part,) = cache.folder.glob("*.parquet")
    part.rename(part.with_name(f".tmp-{part.name}"))
    assert cache.lookup(digests("a")).present.tolist() == [False]
    assert cache.damaged == []


@pytest.mark.parametrize("name", ["model", "precision", "device", "attention", "layout"])
def test_another_key_is_another_cache(tmp_path, name):
    other = LogpCache(tmp_path, KEY | {name: "another"})
    LogpCache(tmp_path, KEY).add(digests("a"), values(-1), values(-2))
    assert other.lookup(digests("a")).present.tolist() == [False]


def test_the_key_holds_what_log_probs_depend_on_and_no_more():
    assert sorted(KEY) == [
        "attention",
        "device",
        "layout",
        "model",
        "precision",
        "processes",
        "scoring_version",
        "threads",
    ]


def test_the_folder_of_a_key_stays_where_it_is(cache, tmp_path):
    assert cache.folder == tmp_path / "logps" / "ad3e6a543827af75535a878d454a0e83"


@given(
    st.lists(st.binary(min_size=16, max_size=16), max_size=20),
    st.lists(st.binary(min_size=16, max_size=16), max_size=20, unique=True),
)
def test_any_digest_is_found_where_it_was_added_and_nowhere_else(tmp_path_factory, asked, stored):
    cache = LogpCache(tmp_path_factory.mktemp("cache"), KEY)
    numbers = -np.arange(len(stored), dtype=np.float32)
    if stored:
        cache.add(stored, numbers, numbers)
    asked = asked + stored[::2]
    found = cache.lookup(asked)
    expected = {digest: -float(index) for index, digest in enumerate(stored)}
    assert found.present.tolist() == [digest in expected for digest in asked]
    assert found.chosen[found.present].tolist() == [expected[d] for d in asked if d in expected]


def test_a_digest_that_ends_in_zeros_is_told_from_others(cache):
    with_zeros, others = b"\x01" * 12 + b"\0" * 4, b"\x01" * 13 + b"\0" * 3
    cache.add([with_zeros], values(-1), values(-2))
    assert cache.lookup([others, with_zeros]).present.tolist() == [False, True]
