"""Uploads bring what is there to a store, however it behaves, and never more than is whole."""

import hashlib
import time
from pathlib import Path

import pytest
from http_store import Store

from sdpo.remote.index import Index, read_index
from sdpo.remote.lease import acquire, this_process
from sdpo.remote.place import Place, open_place
from sdpo.remote.upload import ToKeep, Uploads, Wanted


@pytest.fixture
def place(store: Store) -> Place:
    return open_place(store.url, "tiny")


def uploads(place: Place, wanted: dict[str, dict[str, ToKeep]]) -> Uploads:
    lease = acquire(place, this_process(folder="/here", silence_s=2))

    def now() -> Wanted:
        return dict(wanted)

    index = Index("tiny", {}, (lease.number, 0))
    made = Uploads(lease, index, now, is_passing=lambda name: name.startswith("state"))
    made.start()
    return made


def file(path: Path, content: bytes, *, said: bytes | None = None) -> ToKeep:
    path.write_bytes(content)
    return ToKeep(path, hashlib.sha256(content if said is None else said).hexdigest())


def groups(place: Place) -> list[str]:
    index = read_index(place)
    return list(index.groups) if index else []


def test_a_group_counts_when_all_of_it_is_there(place: Place, store: Store, tmp_path: Path) -> None:
    a, b = file(tmp_path / "a", b"a" * 10), file(tmp_path / "b", b"b" * 3000)
    store.room = 2000
    up = uploads(place, {"one": {"a": a}, "two": {"b": b}})
    assert "the store is full" in up.finish(patience_s=1)
    assert groups(place) == ["one"]
    store.room = float("inf")
    assert up.finish(patience_s=10) == ""
    assert groups(place) == ["one", "two"]
    up.close()
    told = up.said()
    assert len(told) == 2, "once that it fails, once that it answers again"


def test_a_slow_store_keeps_nobody_and_has_everything_in_the_end(
    place: Place, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdpo.remote.upload._TURN_S", 0.5)
    wanted = {name: {name: file(tmp_path / name, name.encode())} for name in "abcd"}
    up = uploads(place, wanted)
    store.delay_s, began = 0.1, time.monotonic()
    up.ask()
    assert time.monotonic() - began < 0.1
    assert up.finish(patience_s=10, at_most_s=0.3) == "the store takes too long"
    assert time.monotonic() - began < 1
    assert up.finish(patience_s=5) == "", "as long as something moves it is waited for"
    assert groups(place) == list("abcd")
    store.delay_s = 30
    began = time.monotonic()
    up.close()
    assert time.monotonic() - began < 5, "a store that hangs does not keep the end"
    store.delay_s = 0


def test_equal_contents_are_uploaded_once(place: Place, store: Store, tmp_path: Path) -> None:
    wanted = {name: {name: file(tmp_path / name, b"same")} for name in "abc"}
    up = uploads(place, wanted)
    assert up.finish(patience_s=10) == ""
    up.close()
    assert len([name for name in store.written if "/files/" in name]) == 1


def test_a_file_that_is_not_what_it_has_to_be_is_not_uploaded(
    place: Place, store: Store, tmp_path: Path
) -> None:
    up = uploads(
        place,
        {
            "changed": {"a": file(tmp_path / "a", b"now", said=b"then")},
            "gone": {"b": ToKeep(tmp_path / "nothing", "0" * 64)},
            "whole": {"c": file(tmp_path / "c", b"c")},
        },
    )
    assert up.finish(patience_s=10) == ""
    up.close()
    assert up.left == {"changed", "gone"}
    assert groups(place) == ["whole"]
    assert len(store.named("/files/")) == 1


def test_a_passing_group_is_dropped_with_its_objects_and_what_others_have_stays(
    place: Place, store: Store, tmp_path: Path
) -> None:
    shared, own = file(tmp_path / "a", b"shared"), file(tmp_path / "b", b"own")
    wanted = {"model": {"a": shared}, "state 1": {"a": shared, "b": own}}
    up = uploads(place, wanted)
    assert up.finish(patience_s=10) == ""
    assert len(store.named("/files/")) == 2
    del wanted["state 1"]
    assert up.finish(patience_s=10) == ""
    up.close()
    assert groups(place) == ["model"]
    assert store.named("/files/") == [f"bucket/tiny/files/{shared.sha256}"]


def test_an_object_of_which_a_part_is_there_is_uploaded_again(
    place: Place, store: Store, tmp_path: Path
) -> None:
    whole = file(tmp_path / "a", b"whole")
    wanted: dict[str, dict[str, ToKeep]] = {}
    up = uploads(place, wanted)
    store.objects[f"bucket/tiny/files/{whole.sha256}"] = b"wh"
    wanted["one"] = {"a": whole}
    assert up.finish(patience_s=10) == ""
    up.close()
    assert store.objects[f"bucket/tiny/files/{whole.sha256}"] == b"whole"


def test_who_has_lost_the_run_writes_no_list_and_the_work_learns_it(
    place: Place, store: Store, tmp_path: Path
) -> None:
    wanted = {"one": {"a": file(tmp_path / "a", b"a")}}
    up = uploads(place, wanted)
    assert up.finish(patience_s=10) == ""
    place.create("lease/00000002.json", place.read("lease/00000001.json") or b"")
    wanted["two"] = {"b": file(tmp_path / "b", b"b")}
    up.ask()
    assert up.finish(patience_s=10) == ""
    assert "was taken over" in str(up.lost)
    up.close()
    assert groups(place) == ["one"]
    assert "bucket/tiny/lease/00000002.beat.json" not in store.objects
