"""A run that is kept in a store is the same run wherever it goes on."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench, Outcome, Values
from http_store import Store, http_store

from sdpo.chain.run_chain import run_chain
from sdpo.config.load import make_config
from sdpo.errors import ConfigError, InUseError, RunExistsError, StoreError
from sdpo.events import Event
from sdpo.history.pull import pull_run
from sdpo.history.verify import verify_run
from sdpo.hooks import Host
from sdpo.remote.index import Index, KeptFile, read_index, write_index
from sdpo.remote.lease import LostRunError, acquire, this_process
from sdpo.remote.place import Place, open_place
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import read_stored
from sdpo.system.files import folder_digests, remove

SUPPORT = Path(__file__).parents[2] / "support"
EVERY = 2
"""A resume state is saved every so many optimizer steps."""
SILENCE_S = 2.0


@pytest.fixture
def store() -> Iterator[Store]:
    with http_store() as served:
        yield served


def place_of(store: Store, name: str = "tiny") -> Place:
    return open_place(store.url, name)


def index_of(store: Store) -> Index:
    index = read_index(place_of(store))
    assert index is not None
    return index


def kept(store: Store, **more: object) -> Values:
    return {"store": {"remote": store.url, "remote_silence_s": SILENCE_S, **more}}


def go_on(
    run: RunFolder, events: list[Event] | None = None, *, without_store: bool = False
) -> None:
    config = read_stored(run).config
    if without_store:
        alone = config.store.model_copy(update={"remote": ""})
        config = config.model_copy(update={"store": alone})
    run_chain(config, host=Host(listen=(events if events is not None else []).append))


def make_stale(run: RunFolder, node: str) -> None:
    """Let a node have to be made again."""
    record = run.read_record(node)
    assert record is not None
    run.publish_record(node, {**record, "identity": {"records": "others"}})


def published(run: RunFolder) -> dict[str, str]:
    """Digests of all models of a run."""
    return {step: run.step_record(f"step-{step}").model for step in map(str, run.complete_steps())}


def parts(run: RunFolder) -> dict[str, str]:
    """Digests of everything that a machine needs which takes the run up."""
    found = folder_digests(run.path)
    own = (".lock", ".sdpo.json", "remote.json", "logs/")
    return {name: digest for name, digest in found.items() if not name.startswith(own)}


def test_a_finished_run_is_uploaded_whole_and_received_elsewhere_byte_for_byte(
    finished_copy: Bench, store: Store, tmp_path: Path
) -> None:
    there = finished_copy.run(kept(store))
    assert not there.result.executed
    here = pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "elsewhere")
    assert parts(here) == parts(there.run)
    assert not verify_run(here).faults
    again = len(store.written)
    pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "elsewhere")
    go_on(here)
    assert not [name for name in store.written[again:] if "/files/" in name], "nothing is new"


def test_a_received_run_does_not_write_to_the_caches_of_the_machine_it_comes_from(
    finished_copy: Bench, store: Store, tmp_path: Path
) -> None:
    finished_copy.run(kept(store))
    here = pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "elsewhere")
    config = read_stored(here).config
    assert (config.store.cache_dir, config.store.remote) == ("", store.url)
    assert config.store.runs_dir == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "name",
    [
        *("../victim", "/tmp/victim", "step-1/../../victim", "logs/step-1.log", ".sdpo.json"),
        *("remote.json", "step-1/model/.tmp-sdpo-x", "notes/mine", "step-1//x", "step-1/a\\b"),
        "step-1/\x00",
    ],
)
def test_a_list_that_leads_out_of_the_run_is_refused_whole(
    store: Store, name: str, tmp_path: Path
) -> None:
    one = KeptFile(sha256="0" * 64, bytes=2)
    start = {"run.yaml": one, "run.yaml.sha256": one}
    step = {"step-1/record.json": one, "step-1/record.json.sha256": one, name: one}
    write_index(place_of(store), Index("tiny", {"run": start, "step-1": step}, (1, 1)))
    with pytest.raises(Exception, match="nothing of it is received"):
        pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "victim").exists()


def test_a_link_in_the_folder_is_not_received_through(
    finished_copy: Bench, store: Store, tmp_path: Path
) -> None:
    finished_copy.run(kept(store))
    run = pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "elsewhere")
    victim = tmp_path / "victim"
    (run.path / "step-1" / "model").rename(victim)
    before = folder_digests(victim)
    (victim / "README.md").write_text("mine")
    (run.path / "step-1" / "model").symlink_to(victim)
    with pytest.raises(Exception, match="leads out of the run"):
        pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "elsewhere")
    assert folder_digests(victim) != before
    assert (victim / "README.md").read_text() == "mine"


def test_an_object_that_was_changed_is_not_received_and_made_again_by_who_goes_on(
    finished_copy: Bench, store: Store, tmp_path: Path
) -> None:
    whole = finished_copy.run(kept(store)).run
    report = index_of(store).groups["report"]["report.html"].sha256
    store.flip(f"bucket/tiny/files/{report}")
    with pytest.raises(Exception, match="1 of its objects are gone or were changed"):
        pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "elsewhere")
    run = RunFolder(tmp_path / "elsewhere" / "tiny")
    assert run.find("report") is None
    assert published(run) == published(whole)
    events: list[Event] = []
    go_on(run, events)
    assert "was changed" in " ".join(str(e.get("message")) for e in events)
    assert [e["node"] for e in events if e["event"] == "node" and e["status"] == "run"] == [
        "report"
    ]
    other = pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "third")
    assert not verify_run(other).faults


def test_a_second_machine_is_refused_while_the_owner_lives(
    finished_copy: Bench, store: Store, tmp_path: Path
) -> None:
    finished_copy.run(kept(store))
    run = pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "elsewhere")
    lease = acquire(place_of(store), this_process(folder="/there", silence_s=SILENCE_S))
    looks = 0

    def live(event: Event) -> None:
        nonlocal looks
        if event["event"] == "waiting":
            looks += 1
            threading.Timer(0.3, lease.say).start()

    config = read_stored(run).config
    with pytest.raises(InUseError, match="is in use by process"):
        run_chain(config, host=Host(listen=live))
    assert looks == 1
    lease.say(ended=True)
    assert not run_chain(config).executed


def test_a_machine_that_was_taken_for_dead_and_comes_back_is_refused(
    finished_copy: Bench, store: Store
) -> None:
    there = finished_copy.run(kept(store)).run
    taken = False

    def take(event: Event) -> None:
        nonlocal taken
        if event["event"] == "node" and not taken:
            taken = True
            place = place_of(store)
            place.create("lease/00000003.json", place.read("lease/00000002.json") or b"")

    config = make_config(finished_copy.values(kept(store)))
    make_stale(there, "report")
    with pytest.raises(LostRunError, match="was taken over by process"):
        run_chain(config, host=Host(listen=take))
    index = index_of(store)
    assert index.number[0] == 1, "it has written nothing since"


def test_two_machines_that_made_the_same_node_are_not_mixed(
    finished_copy: Bench, store: Store, tmp_path: Path
) -> None:
    there = finished_copy.run(kept(store)).run
    here = pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "elsewhere")
    record = here.read_record("report")
    assert record is not None
    here.publish_record("report", {**record, "created": "2020-01-01T00:00:00+00:00"})
    before = parts(here)
    with pytest.raises(RunExistsError, match="report was made here and there"):
        go_on(here)
    assert parts(here) == before
    assert parts(there) != before


def test_another_run_of_the_same_name_is_not_written_over(
    finished_copy: Bench, store: Store
) -> None:
    finished_copy.run(kept(store))
    remove(finished_copy.runs / "tiny")
    config = make_config(finished_copy.values(kept(store)))
    with pytest.raises(RunExistsError, match="has another run of this name"):
        run_chain(config)
    assert not (finished_copy.runs / "tiny").exists(), "its name stays free"


def test_a_store_that_fails_or_is_full_delays_and_stops_nothing(
    finished_copy: Bench, store: Store
) -> None:
    events: list[Event] = []

    def fail_for_a_while(event: Event) -> None:
        events.append(event)
        if event["event"] == "node":
            store.room = 0
        if event["event"] == "waiting":
            store.room = float("inf")

    config = make_config(finished_copy.values(kept(store)))
    (finished_copy.runs / "tiny" / "nodes" / "report.json.sha256").unlink()
    store.room = 5000
    run_chain(config, host=Host(listen=fail_for_a_while))
    said = [str(e["message"]) for e in events if e["event"] == "warning"]
    assert any("the store is full" in line and "The run goes on" in line for line in said)
    assert said[-1] == "the remote store answers again"
    assert index_of(store).groups.keys() == {"run", *RunFolder(finished_copy.runs / "tiny").nodes()}


def test_a_store_that_has_gone_is_told_at_the_end_and_the_run_is_whole(
    finished_copy: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdpo.chain.remote._PATIENCE_S", 0.5)

    def fail(event: Event) -> None:
        store.fails = store.fails or event["event"] == "node"

    (finished_copy.runs / "tiny" / "nodes" / "report.json.sha256").unlink()
    config = make_config(finished_copy.values(kept(store)))
    with pytest.raises(StoreError, match=r"is whole, and .* does not have all of it"):
        run_chain(config, host=Host(listen=fail))
    store.fails = False
    run = RunFolder(finished_copy.runs / "tiny")
    assert not verify_run(run).faults
    go_on(run)
    assert "report" in index_of(store).groups


def test_a_store_that_ignores_conditions_is_refused(finished_copy: Bench, store: Store) -> None:
    store.is_conditional = False
    with pytest.raises(ConfigError, match="overwrites an object"):
        finished_copy.run(kept(store))


def test_a_folder_of_the_users_in_the_store_is_refused(finished_copy: Bench, store: Store) -> None:
    store.objects["bucket/tiny/thesis.pdf"] = b"mine"
    with pytest.raises(Exception, match=r"holds thesis\.pdf, and nothing that this project made"):
        finished_copy.run(kept(store))
    assert store.objects == {"bucket/tiny/thesis.pdf": b"mine"}


RUN = """
import json, sys
sys.path.insert(0, {support!r})
import fsspec
from pathlib import Path
from bench import Bench
import bench
from functools import partial
from http_store import PROTOCOL, HttpStore
fsspec.register_implementation(PROTOCOL, HttpStore)
folder, values = Path(sys.argv[1]), json.loads(sys.argv[2])
bench.forked_stages = partial(bench.forked_stages, first={first!r})
Bench(folder, values).run()
"""
WAITS = """
import sys, time
if {step!r} in sys.argv[-1]:
    import sdpo.stages.publish as module
    module.write_card = lambda *args, **kwargs: time.sleep(600)
"""
"""Has a stage that has trained wait for its end, which a tiny one comes to at once."""


def killed_at(bench: Bench, store: Store, step: str) -> None:
    """Run the chain in a process of its own and kill it when the store has a state of this step."""
    group = f"resume {step}"
    more = {**kept(store, remote_states=True), "training": {"checkpoint_every": EVERY}}
    program = RUN.format(support=str(SUPPORT), first=WAITS.format(step=step))
    command = [sys.executable, "-c", program, str(bench.folder)]
    with subprocess.Popen([*command, json.dumps(bench.values(more))]) as process:
        try:
            while group not in (read_index(place_of(store)) or Index("", {})).groups:
                assert process.poll() is None, "it has ended before"
                time.sleep(0.02)
        finally:
            process.kill()


def last_saved(run: RunFolder, step: str) -> int:
    """The optimizer step of the newest resume state that is whole here; 0: none."""
    found = sorted(run.path.glob(f"{step}/resume/*/state.json"))
    return int(found[-1].parent.name) if found else 0


def test_a_run_whose_machine_dies_goes_on_elsewhere_to_the_same_models(
    bench: Bench, finished: Outcome, store: Store, tmp_path: Path
) -> None:
    step = "step-2"
    killed_at(bench, store, step)
    dead = RunFolder(bench.runs / "tiny")
    saved = last_saved(dead, step)
    run = pull_run(f"{store.url}/tiny", runs_dir=tmp_path / "elsewhere" / "runs", start_only=True)
    events: list[Event] = []
    go_on(run, events)
    said = [str(e.get("message")) for e in events]
    assert any("has said nothing for" in line for line in said)
    assert published(run) == published(finished.run)
    resumed = run.step_record(step).resumed_at
    assert resumed
    assert resumed[-1] >= saved - EVERY
    assert not verify_run(run).faults
    go_on(dead, without_store=True)
    with pytest.raises(RunExistsError, match=f"{step}, .* was made here and there"):
        go_on(dead)
