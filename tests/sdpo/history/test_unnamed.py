"""What no list of a store names any more is deleted, by who owns the run then, and nothing else."""

import hashlib
from pathlib import Path

import pytest

from sdpo.errors import ConfigError
from sdpo.history.unnamed import delete_unnamed, find_unnamed
from sdpo.remote.index import Index, KeptFile, object_of, objects_in, write_index
from sdpo.remote.lease import acquire, this_process
from sdpo.remote.place import Place, open_place


def kept(place: Place, content: bytes) -> KeptFile:
    """A file that is in the store."""
    digest = hashlib.sha256(content).hexdigest()
    place.write(object_of(digest), content)
    return KeptFile(sha256=digest, bytes=len(content))


def a_run(url: str, name: str, *, ended: bool = True) -> tuple[Place, str]:
    """A run with a file that its list names and two that none does; returns its owner's token."""
    place = open_place(url, name)
    lease = acquire(place, this_process(folder="/run", silence_s=2))
    named = kept(place, f"named {name}".encode())
    for number in range(2):
        kept(place, f"left behind {number} by {name}".encode())
    write_index(place, Index(name, {"start": {"run.yaml": named}}, (lease.number, 1)))
    place.write("files/notes", b"mine")
    if ended:
        lease.say(ended=True)
    return place, lease.owner.token


def test_what_no_list_names_goes_and_the_rest_stays(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    place, token = a_run(url, "tiny")
    arm, _ = a_run(url, "study/arm")
    found, notes = find_unnamed(url)
    assert notes == []
    assert {(each.place.url, len(each.digests)) for each in found} == {
        (place.url, 2),
        (arm.url, 2),
    }
    (of_the_run,) = find_unnamed(place.url)[0]
    assert delete_unnamed(of_the_run, listen=lambda _: None) == ""
    assert len(objects_in(place)) == 1
    assert place.read("files/notes") == b"mine"
    assert len(objects_in(arm)) == 3, "the other run was not named"
    assert find_unnamed(place.url) == ([], [])
    again = acquire(place, this_process(folder="/run", silence_s=2), known=token)
    assert again.was_mine, "who owned the run before goes on as if nobody had been there"


def test_an_older_list_names_its_files_until_it_is_gone(tmp_path: Path) -> None:
    place, _ = a_run(f"file://{tmp_path}", "tiny")
    other = kept(place, b"left behind 0 by tiny")
    write_index(place, Index("tiny", {"start": {"run.yaml": other}}, (1, 2)))
    (found,) = find_unnamed(place.url)[0]
    assert len(found.digests) == 1


def test_a_run_that_somebody_owns_is_left_alone(tmp_path: Path) -> None:
    """Its owner may be about to name what no list names yet."""
    place, _ = a_run(f"file://{tmp_path}", "tiny")
    (found,) = find_unnamed(place.url)[0]
    lease = acquire(place, this_process(folder="/elsewhere", silence_s=2))

    def it_lives(event: object) -> None:
        lease.say()

    assert "in use by" in delete_unnamed(found, listen=it_lives)
    assert len(objects_in(place)) == 3


def test_what_is_named_meanwhile_stays(tmp_path: Path) -> None:
    place, _ = a_run(f"file://{tmp_path}", "tiny")
    (found,) = find_unnamed(place.url)[0]
    taken = kept(place, b"left behind 0 by tiny")
    write_index(place, Index("tiny", {"start": {"run.yaml": taken}}, (1, 2)))
    assert delete_unnamed(found, listen=lambda _: None) == ""
    assert place.size(object_of(taken.sha256)) == taken.bytes
    assert len(objects_in(place)) == 2, "the list before names another one"


def test_a_list_that_is_damaged_names_nobody_knows_what(tmp_path: Path) -> None:
    place, _ = a_run(f"file://{tmp_path}", "tiny")
    place.write("index/00000001-00000002.json", b"damaged")
    found, notes = find_unnamed(place.url)
    assert found == []
    assert "left alone" in notes[0]


def test_a_place_without_any_list_is_no_run(tmp_path: Path) -> None:
    place = open_place(f"file://{tmp_path}", "mine")
    kept(place, b"a file of somebody's")
    assert find_unnamed(f"file://{tmp_path}") == ([], [])
    with pytest.raises(ConfigError):
        find_unnamed("nowhere")
