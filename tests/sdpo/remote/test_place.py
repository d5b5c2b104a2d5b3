"""What a store must be able to do, and what a URL of one must not say."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from http_store import Store

from sdpo.errors import ConfigError, StoreError
from sdpo.remote.place import Place, open_place

Open = Callable[[str], Place]


@pytest.fixture(params=["folder", "memory", "http"])
def place(request: pytest.FixtureRequest, store: Store, tmp_path: Path) -> Place:
    urls = {
        "folder": f"file://{tmp_path}/kept",
        "memory": f"memory://{tmp_path.name}",
        "http": store.url,
    }
    return open_place(urls[request.param], "tiny")


def test_an_object_is_created_by_one_of_many_who_try_at_once(place: Place) -> None:
    tries, start = 8, threading.Barrier(8)
    created: list[int] = []

    def create(number: int) -> None:
        start.wait()
        if place.create("lease/1.json", str(number).encode()):
            created.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(tries)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert place.read("lease/1.json") == str(created[0]).encode()


def test_what_was_written_is_read_listed_downloaded_and_removed(
    place: Place, tmp_path: Path
) -> None:
    assert (place.names(), place.read("files/a"), place.size("files/a")) == ([], None, None)
    (tmp_path / "a").write_bytes(b"content")
    place.put(tmp_path / "a", "files/a", sha256="0" * 64)
    place.write("index/b", b"b")
    place.write("index/b", b"bb")
    assert place.names() == ["files", "index"]
    assert place.names("index") == ["b"]
    assert (place.size("files/a"), place.read("index/b")) == (7, b"bb")
    assert place.get("files/a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    place.delete("files/a")
    place.delete("files/a")
    assert not place.get("files/a", tmp_path / "gone")


def test_an_object_that_is_larger_than_anything_written_here_is_not_read(place: Place) -> None:
    place.write("index/b", b"12345")
    with pytest.raises(StoreError, match="index/b has 5 bytes, which nothing here wrote"):
        place.read("index/b", at_most=4)


def test_a_store_that_fails_is_named_with_its_reason(store: Store) -> None:
    place = open_place(store.url, "tiny")
    store.fails = True
    with pytest.raises(StoreError, match=r"/tiny/index/b: OSError: .*the store answers 503"):
        place.write("index/b", b"b")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://key:secret@bucket/runs", "may name no user, password, key or option"),
        ("s3://bucket/runs?aws_secret=secret", "may name no user, password, key or option"),
        ("s3://bucket/runs#secret", "may name no user, password, key or option"),
        ("simplecache::s3://bucket/runs", "is no URL of a store"),
        ("runs/elsewhere", "is no URL of a store"),
        ("s3://bucket/my runs", "is no URL of a store"),
        ("s3://", "is no URL of a store"),
        ("file:///", "names no bucket or folder"),
        ("s4://bucket/runs", "s4:// is not known. Use s3"),
        ("ftp://127.0.0.1/runs", "two machines could own one run"),
        ("reference://x/y", "two machines could own one run"),
    ],
)
def test_a_url_that_is_no_store_of_runs_is_refused_and_no_secret_repeated(
    url: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        open_place(url, "tiny")
    assert "secret" not in str(refused.value).replace("aws_secret", "")


def test_a_store_whose_library_is_not_there_is_refused_with_how_to_install_it() -> None:
    with pytest.raises(ConfigError, match="pip install adlfs"):
        open_place("abfs://container/runs", "tiny")
