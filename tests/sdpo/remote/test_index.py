"""A list of files is whole or the one before it counts."""

from pathlib import Path

import pytest
from http_store import Store

from sdpo.errors import IntegrityError
from sdpo.remote.index import Index, KeptFile, read_index, write_index
from sdpo.remote.place import Place, open_place


@pytest.fixture
def place(store: Store) -> Place:
    return open_place(store.url, "tiny")


def index(letter: str, *number: int) -> Index:
    file = KeptFile(sha256=letter * 64, bytes=3)
    return Index("tiny", {"plan": {"plan.json": file}}, (number[0], number[1]))


def test_the_newest_is_read_and_all_but_the_last_two_are_removed(place: Place) -> None:
    assert read_index(place) is None
    for number in range(1, 5):
        write_index(place, index("abcd"[number - 1], 1, number))
    assert read_index(place) == index("d", 1, 4)
    assert len(place.names("index")) == 2


def test_one_that_was_not_written_to_its_end_gives_way_to_the_one_before(
    place: Place, store: Store
) -> None:
    write_index(place, index("a", 1, 1))
    write_index(place, index("b", 1, 2))
    name = "bucket/tiny/index/00000001-00000002.json"
    store.objects[name] = store.objects[name][:-10]
    assert read_index(place) == index("a", 1, 1)
    store.flip("bucket/tiny/index/00000001-00000001.json")
    with pytest.raises(IntegrityError, match="no list of its files that is whole"):
        read_index(place)


def test_what_somebody_writes_who_has_lost_the_run_is_older_than_what_its_owner_wrote(
    place: Place,
) -> None:
    write_index(place, index("a", 1, 7))
    write_index(place, index("b", 2, 1))
    write_index(place, index("c", 1, 8))
    assert read_index(place) == index("b", 2, 1)


@pytest.mark.parametrize("content", [b"", b"\n{}", b"[1]", b"\xff\xfe", b"{" * 100_000])
def test_what_is_no_list_is_refused(place: Place, content: bytes, tmp_path: Path) -> None:
    place.write("index/00000001-00000001.json", content)
    with pytest.raises(IntegrityError, match="no list of its files that is whole"):
        read_index(place)
