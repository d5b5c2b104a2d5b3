"""What is deleted is what nothing needs."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bench import Bench
from desk import wait_until
from forked_stages import forked_stages
from histories import contents, flip, origin, replayed

from sdpo.chain.run_chain import run_chain
from sdpo.config.load import make_config
from sdpo.events import Event
from sdpo.history.gc import Found, collect, delete
from sdpo.history.verify import verify_run
from sdpo.hooks import Host
from sdpo.store.logp_cache import LogpCache
from sdpo.store.resume_states import seal, state_folder
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import checksum_path, checksum_text, temporary_path
from sdpo.system.locks import share


def swept(bench: Bench) -> Found:
    with collect(bench.runs) as found:
        delete(found)
    return found


def test_of_a_whole_run_with_its_cache_nothing_goes(finished_copy: Bench) -> None:
    before = contents(finished_copy.folder)
    found = swept(finished_copy)
    assert (found.waste, found.notes) == ([], [])
    assert contents(finished_copy.folder) == before


def test_what_died_left_behind_goes_and_the_rest_stays(finished_copy: Bench) -> None:
    run, cache = origin(finished_copy), finished_copy.folder / "cache"
    before = contents(finished_copy.folder)
    half = temporary_path(run.model(1))
    half.mkdir()
    (half / "weights").write_bytes(b"0" * 1000)
    state = state_folder(run.step(2), 2)
    state.mkdir(parents=True)
    (state / "model.safetensors").write_bytes(b"0")
    seal(state, {"optimizer_step": 2}, {"model.safetensors": "0" * 64})
    (cache / "tokens" / f".{'0' * 32}.lock").touch()
    known = next((cache / "tokens").glob("*.arrow"))
    unused = known.with_stem("1" * 32)
    shutil.copyfile(known, unused)
    checksum_path(unused).write_text(checksum_text(unused))
    old, new = (temporary_path(cache / "tokens" / name) for name in ("old", "new"))
    for path, age in ((old, 2 * 86400), (new, 60)):
        path.write_bytes(b"0")
        os.utime(path, (time.time() - age,) * 2)
    found = swept(finished_copy)
    assert {waste.path.name for waste in found.waste} == {
        *(half.name, "resume", f".{'0' * 32}.lock", unused.name, f"{unused.name}.sha256", old.name),
    }
    assert found.size_bytes > 1000
    assert any(new.name in note for note in found.notes)
    new.unlink()
    assert contents(finished_copy.folder) == before


def test_rows_of_no_run_go_and_damaged_ones(finished_copy: Bench) -> None:
    cache = finished_copy.folder / "cache"
    ones = np.ones(1, np.float32)
    foreign = LogpCache(cache, {"model": "of no run"})
    foreign.add([b"0" * 16], ones, ones)
    known = sorted(p for p in (cache / "logps").iterdir() if p != foreign.folder)
    unused = LogpCache(cache, {"model": "x"})
    unused.folder = known[0]
    unused.add([b"1" * 16], ones, ones)
    flip(next(known[1].glob("*.parquet")))
    whys = {waste.path.parent.name: waste.why for waste in swept(finished_copy).waste}
    assert whys == {
        "logps": "log-probs under a model of no run",
        known[0].name: "log-probs of pairs of no run",
        known[1].name: "damaged: its rows are scored again",
    }
    assert finished_copy.run().result.executed == ()
    assert verify_run(origin(finished_copy)).faults == []


def test_what_a_replay_has_from_its_origin_stays_when_the_origin_goes(
    finished_copy: Bench,
) -> None:
    _, again = replayed(origin(finished_copy), "training.beta=0.2", step=2)
    shutil.rmtree(origin(finished_copy).path)
    found = swept(finished_copy)
    assert [waste.why for waste in found.waste] == ["log-probs under a model of no run"], "M_2's"
    assert verify_run(again.run).faults == []
    _, third = replayed(again.run, "training.beta=0.3", step=1)
    assert third.record("step-1")["scored_rows"]["computed"] == 0


def test_a_run_in_use_and_the_cache_it_works_on_are_left_alone(finished_copy: Bench) -> None:
    run, cache = origin(finished_copy), finished_copy.folder / "cache"
    half = temporary_path(run.path / "x")
    half.touch()
    shutil.copytree(run.path, finished_copy.runs / "other")
    ones = np.ones(1, np.float32)
    LogpCache(cache, {"model": "of no run"}).add([b"0" * 16], ones, ones)
    code = (
        "import sys; from pathlib import Path; from sdpo.store.run_folder import RunFolder, "
        "run_lock\n"
        "with run_lock(RunFolder(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", code, str(run.path)]
    with (
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
        share(cache / ".lock", what="the cache"),
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        found = swept(finished_copy)
        holder.kill()
    assert [w.path for w in found.waste] == [(finished_copy.runs / "other" / half.name).absolute()]
    assert any(f"process {holder.pid}" in note for note in found.notes)
    assert any("the cache" in note for note in found.notes)


def test_a_run_that_starts_while_a_cache_is_cleaned_waits_and_makes_again_what_went(
    finished_copy: Bench,
) -> None:
    """Also while it scores and fills the cache nothing of it goes, however often that is tried."""
    shutil.rmtree(finished_copy.runs / "tiny")
    small = {"partition": {"strategy": "single"}, "training": {"max_steps": 1}}
    config, events = make_config(finished_copy.values(small)), list[Event]()

    def waits() -> bool:
        return any(event["event"] == "waiting" for event in events)

    with forked_stages(), ThreadPoolExecutor(1) as beside:
        with collect(finished_copy.runs) as found:
            running = beside.submit(run_chain, config, host=Host(listen=events.append))
            wait_until(waits, 30, "a run that waits for the cache")
            delete(found)
        in_use = 0
        while not running.done():
            in_use += any("in use by a run" in note for note in swept(finished_copy).notes)
            time.sleep(0.05)
    assert found.waste
    assert in_use
    run = RunFolder(running.result().run)
    assert not verify_run(run).faults
    assert swept(finished_copy).waste == []


@pytest.mark.parametrize("name", ["run.yaml", "nodes/reserve.json"])
def test_where_a_run_cannot_be_read_nothing_in_the_cache_goes(
    finished_copy: Bench, name: str
) -> None:
    flip(Path(origin(finished_copy).path / name))
    cache = finished_copy.folder / "cache"
    ones = np.ones(1, np.float32)
    LogpCache(cache, {"model": "of no run"}).add([b"0" * 16], ones, ones)
    found = swept(finished_copy)
    assert found.waste == []
    assert any("left alone" in note for note in found.notes)
