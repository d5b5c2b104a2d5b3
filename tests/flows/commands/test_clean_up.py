"""`sdpo gc --remote` lists what no list of a run in a store names, and deletes it when asked to."""

import hashlib
from pathlib import Path

from command_line import Sdpo

from sdpo.remote.index import Index, KeptFile, object_of, objects_in, write_index
from sdpo.remote.lease import acquire, this_process
from sdpo.remote.place import open_place


def test_objects_that_nothing_names_are_listed_and_deleted_when_asked(
    tmp_path: Path, sdpo: Sdpo
) -> None:
    place = open_place(f"file://{tmp_path}", "tiny")
    lease = acquire(place, this_process(folder="/run", silence_s=2))
    digests = [hashlib.sha256(content).hexdigest() for content in (b"named", b"left behind")]
    for digest, content in zip(digests, (b"named", b"left behind"), strict=True):
        place.write(object_of(digest), content)
    named = {"start": {"run.yaml": KeptFile(sha256=digests[0], bytes=5)}}
    write_index(place, Index("tiny", named, (lease.number, 1)))
    lease.say(ended=True)
    shown = sdpo("gc", "--remote", f"file://{tmp_path}", "--dry-run")
    assert shown.code == 0
    assert "What no list names" in shown.out
    assert len(objects_in(place)) == 2
    done = sdpo("gc", "--remote", place.url, "--yes")
    assert (done.code, objects_in(place)) == (0, {digests[0]})
    assert "nothing to delete" in sdpo("gc", "--remote", place.url, "--yes").out
    assert sdpo("gc", "--remote", "nowhere", "--yes").code == 2
