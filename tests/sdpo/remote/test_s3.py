"""Against S3's real API: conditional writes, checksums, parts, and machines that die."""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Outcome
from s3_server import BUCKET, s3_server

from sdpo.history.verify import verify_run
from sdpo.history.verify_remote import verify_remote
from sdpo.remote import place as places
from sdpo.remote.index import object_of, read_index
from sdpo.remote.place import open_place
from sdpo.store.run_folder import RunFolder

pytestmark = [
    pytest.mark.slow,
    # aiobotocore leaves its session to the end of the process.
    pytest.mark.filterwarnings("ignore:Unclosed|unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning"),
]
URL = f"s3://{BUCKET}/kept"
SUPPORT = Path(__file__).parents[2] / "support"
KILLS = 10
EVERY = 2
SILENCE_S = 2.0


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of the server."""
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as client:
        yield client


@pytest.fixture(autouse=True)
def _empty(s3: Any) -> None:
    """No test sees what another one has left."""
    for entry in s3.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        s3.delete_object(Bucket=BUCKET, Key=entry["Key"])


def test_of_many_who_create_an_object_at_once_one_does(s3: Any) -> None:
    place, created = open_place(URL, "tiny"), list[int]()
    threads = [
        threading.Thread(
            target=lambda n=n: place.create("lease/1.json", b"%d" % n) and created.append(n)
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert place.read("lease/1.json") == b"%d" % created[0]


def test_a_checksum_of_the_whole_proves_a_file_and_an_object_in_parts_is_known_by_its_size(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_CHUNK_BYTES", 5 * 2**20)
    place = open_place(URL, "tiny")
    for name, size, proved in (("small", 1000, True), ("parts", 11 * 2**20, None)):
        file = tmp_path / name
        file.write_bytes(random.Random(0).randbytes(size))
        digest = sha256(file.read_bytes()).hexdigest()
        place.put(file, object_of(digest), sha256=digest)
        assert place.size(object_of(digest)) == size
        assert place.is_proved(object_of(digest), sha256=digest) is proved
        head = s3.head_object(Bucket=BUCKET, Key=f"kept/tiny/{object_of(digest)}")
        assert ("-" in head["ETag"]) is (proved is None), "an ETag of parts is no digest"


def test_a_flipped_byte_is_found_by_the_stores_checksum_and_nothing_secret_is_recorded(
    s3: Any, finished_copy: Bench
) -> None:
    run = finished_copy.run({"store": {"remote": URL}}).run
    found = verify_remote("tiny", runs_dir=finished_copy.runs, deep=False)
    assert set(found.proofs.values()) == {"checksum"}
    assert not found.findings.faults
    index = read_index(open_place(URL, "tiny"))
    assert index is not None
    model = index.groups["step-1"]["step-1/model/model.safetensors"].sha256
    key = f"kept/tiny/{object_of(model)}"
    content = bytearray(s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
    content[7] ^= 1
    s3.put_object(Bucket=BUCKET, Key=key, Body=bytes(content), ChecksumAlgorithm="SHA256")
    found = verify_remote("tiny", runs_dir=finished_copy.runs, deep=False)
    assert {fault.file for fault in found.findings.faults} == {"step-1/model/model.safetensors"}
    texts = [path.read_bytes() for path in run.path.rglob("*") if path.is_file()]
    for entry in s3.list_objects_v2(Bucket=BUCKET)["Contents"]:
        texts.append(s3.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read())
    assert not [text for text in texts if b"a-secret-of-this-test" in text or b"AKIAWHO" in text]


RUN = """
import sys
sys.path.insert(0, {support!r})
from pathlib import Path
from forked_stages import forked_stages
from sdpo.chain.run_chain import run_chain
from sdpo.config.load import make_config
from sdpo.history.pull import pull_run
from sdpo.store.stored_run import read_stored
import json
url, runs, values = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
with forked_stages():
    if values:
        config = make_config(values)
    else:
        config = read_stored(pull_run(url, runs_dir=runs, start_only=True)).config
    run_chain(config)
"""


@pytest.mark.timeout(1800)
def test_a_run_killed_at_ten_random_moments_ends_in_the_same_models(
    s3: Any, bench: Bench, finished: Outcome, tmp_path: Path
) -> None:
    """Each time in another folder, with caches of its own, from what the store has."""
    drawn, killed, lost = random.Random(20), 0, []
    more = {
        "store": {"remote": URL, "remote_states": True, "remote_silence_s": SILENCE_S},
        "training": {"checkpoint_every": EVERY},
    }
    values: dict[str, Any] = bench.values(more)
    runs = bench.runs
    while True:
        command = [sys.executable, "-c", RUN.format(support=str(SUPPORT)), f"{URL}/tiny", str(runs)]
        began = _kept_now(s3)
        with subprocess.Popen([*command, json.dumps(values)]) as process:
            # A moment after the store has something new: else it would never come to an end.
            while killed < KILLS and process.poll() is None and _kept_now(s3) == began:
                time.sleep(0.02)
            try:
                process.wait(drawn.uniform(0, 0.2) if killed < KILLS else None)
            except subprocess.TimeoutExpired:
                process.kill()
        killed += 1
        run = RunFolder(runs / "tiny")
        if process.returncode == 0:
            break
        lost.append(_saved_here(run) - _saved_in_store())
        values, runs = {}, tmp_path / f"machine-{killed}" / "runs"
    assert killed > KILLS, "it was killed ten times before it came to its end"
    assert max(lost) <= EVERY, lost
    assert {n: run.step_record(f"step-{n}").model for n in (1, 2)} == {
        n: finished.run.step_record(f"step-{n}").model for n in (1, 2)
    }
    assert not verify_run(run).faults
    assert not verify_remote(f"{URL}/tiny", runs_dir=tmp_path, deep=True).findings.faults


def _kept_now(s3: Any) -> list[str]:
    """The names of the lists that the store has."""
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix="kept/tiny/index/").get("Contents", ())
    return [entry["Key"] for entry in found]


def _saved_here(run: RunFolder) -> int:
    """Optimizer steps that are in models and resume states of a folder, over all steps."""
    total = 0
    for step in ("step-1", "step-2"):
        states = sorted(run.path.glob(f"{step}/resume/*/state.json"))
        whole = run.find_step(step) if not run.is_damaged(step) else None
        total += whole.optimizer_steps if whole else int(states[-1].parent.name) if states else 0
    return total


def _saved_in_store() -> int:
    index = read_index(open_place(URL, "tiny"))
    groups = index.groups if index else {}
    total = 0
    for step in ("step-1", "step-2"):
        states = [path.split("/")[2] for path in groups.get(f"resume {step}", ())]
        total += 6 if step in groups else int(max(states)) if states else 0
    return total
