"""Locks and caches between real processes."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from desk import wait_until

from sdpo.errors import InUseError, UserError
from sdpo.events import Event, WaitEvent
from sdpo.store.logp_cache import LogpCache, part_is_whole
from sdpo.store.run_folder import RunFolder, run_lock
from sdpo.system.locks import hold, share

HOLDER = """
import sys
from pathlib import Path
from sdpo.system.locks import hold, share
take = share if sys.argv[2:] == ["shared"] else hold
with take(Path(sys.argv[1]), what="it"):
    print("held", flush=True)
    sys.stdin.read()
"""

COUNTER = """
import sys
from pathlib import Path
from sdpo.system.locks import hold
folder = Path(sys.argv[1])
for _ in range(50):
    with hold(folder / "lock", what="it", wait=True):
        (folder / "count").write_text(str(int((folder / "count").read_text()) + 1))
        (folder / "lock").unlink()
"""

SCORER = """
import sys
from pathlib import Path
import numpy as np
from sdpo.store.logp_cache import LogpCache
root, seed = Path(sys.argv[1]), int(sys.argv[2])
cache = LogpCache(root, {"model": "m"})
order = np.random.default_rng(seed).permutation(40)
print("ready", flush=True)
sys.stdin.readline()
for part in order:
    rows = [f"{part * 10 + i:016d}".encode() for i in range(10)]
    values = np.arange(10, dtype=np.float32) + part * 10
    cache.add(rows, values, -values)
    found = cache.lookup(rows)
    assert found.present.all() and (found.chosen == values).all()
"""


def start(code: str, *arguments: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def line_of(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def test_who_holds_a_lock_is_said_with_pid_host_and_time(tmp_path: Path) -> None:
    with start(HOLDER, tmp_path / "lock") as holder:
        assert line_of(holder) == b"held\n"
        wanted = (
            f"the run is in use by process {holder.pid} on host {socket.gethostname()} since 20"
        )
        with pytest.raises(UserError, match=wanted), hold(tmp_path / "lock", what="the run"):
            pytest.fail("two processes hold it")
        holder.kill()


def test_what_is_said_of_a_holder_is_the_same_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(InUseError("run tiny", "process 7 on host a")))
    assert isinstance(error, UserError)
    assert (error.what, error.by) == ("run tiny", "process 7 on host a")
    assert (
        str(error) == "run tiny is in use by process 7 on host a: wait for it (--wait) or stop it"
    )


def test_the_second_waits_where_it_is_told_to(tmp_path: Path) -> None:
    events: list[Event] = []
    with start(HOLDER, tmp_path / "lock") as holder:
        assert line_of(holder) == b"held\n"

        def release(event: Event) -> None:
            events.append(event)
            assert holder.stdin is not None
            holder.stdin.close()

        with hold(tmp_path / "lock", what="it", wait=True, listen=release):
            assert holder.wait() == 0
    waiting, waited = events  # a lock that was let go of is not one that was left behind
    assert isinstance(waiting, WaitEvent)
    assert waiting.event == "waiting"
    assert f"waiting for it, in use by process {holder.pid}" in waiting.message
    assert waited == WaitEvent(event="waited", what="it")


def test_a_lock_of_a_process_that_died_is_taken_over_with_a_word(tmp_path: Path) -> None:
    with start(HOLDER, tmp_path / "lock") as holder:
        assert line_of(holder) == b"held\n"
        holder.kill()
    events: list[Event] = []
    with hold(tmp_path / "lock", what="run x", listen=events.append):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
    (event,) = events
    assert f"run x was left behind by process {holder.pid}" in event["message"]
    assert (tmp_path / "lock").read_text() == ""


def test_a_lock_of_another_host_is_taken_over_with_a_warning(tmp_path: Path) -> None:
    note = {"pid": 1, "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "lock").write_text(json.dumps(note))
    events: list[Event] = []
    with hold(tmp_path / "lock", what="run x", listen=events.append):
        pass
    assert "on host elsewhere" in events[0]["message"]
    assert "make sure that process has ended" in events[0]["message"]


def test_a_holder_whose_process_is_gone_but_whose_stage_goes_on_is_told_apart(
    tmp_path: Path,
) -> None:
    with hold(tmp_path / "lock", what="it"):
        gone = {"pid": 2**22 - 3, "host": socket.gethostname(), "since": "2026-01-01"}
        (tmp_path / "lock").write_text(json.dumps(gone))
        with (
            pytest.raises(UserError, match="its stage is still ending"),
            hold(tmp_path / "lock", what="it"),
        ):
            pytest.fail("two hold it")


def test_many_processes_and_a_lock_file_that_its_holders_remove_never_overlap(
    tmp_path: Path,
) -> None:
    (tmp_path / "count").write_text("0")
    with ExitStack() as open_:
        processes = [open_.enter_context(start(COUNTER, tmp_path)) for _ in range(4)]
        assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "200"


def test_who_shares_a_lock_whose_holder_removes_it_keeps_the_next_holder_out(
    tmp_path: Path,
) -> None:
    lock = tmp_path / "folder" / "lock"
    held = threading.Event()

    def sharing() -> None:
        with share(lock, what="it"):
            held.set()
            done.wait(30)

    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with hold(lock, what="it"):
            sharer = pool.submit(sharing)
            waiting = f":{lock.stat().st_ino} "
            wait_until(
                lambda: any(
                    "->" in line and waiting in line
                    for line in Path("/proc/locks").read_text().splitlines()
                ),
                30,
                "a process that waits for the lock",
            )
            shutil.rmtree(lock.parent)
        assert held.wait(30)
        with pytest.raises(InUseError), hold(lock, what="it"):
            pytest.fail("one who wants it alone has what another shares")
        done.set()
        sharer.result(30)


def test_a_run_that_is_cleared_while_another_process_waits_is_the_others_then(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path / "run")
    with run_lock(run):
        (run.path / "pairs.parquet").touch()
        with start(HOLDER, run.lock_file) as refused:
            refused.wait()
        run.clear(keep=set())
        assert not run.path.exists()
        with start(HOLDER, run.lock_file) as other:
            assert line_of(other) == b"held\n", "the name is free"
            run.clear(keep={run.lock_file})
            assert run.lock_file.exists()
            other.kill()


def test_those_who_share_do_not_keep_each_other_out_but_keep_out_one_who_wants_it_alone(
    tmp_path: Path,
) -> None:
    with start(HOLDER, tmp_path / "lock", "shared") as other, share(tmp_path / "lock", what="it"):
        assert line_of(other) == b"held\n"
        with (
            pytest.raises(UserError, match="in use by another process"),
            hold(tmp_path / "lock", what="the cache"),
        ):
            pytest.fail("two hold it")
        other.kill()


def test_processes_that_add_to_one_key_at_once_corrupt_nothing(tmp_path: Path) -> None:
    with ExitStack() as open_:
        processes = [open_.enter_context(start(SCORER, tmp_path, seed)) for seed in range(4)]
        assert [line_of(process) for process in processes] == [b"ready\n"] * 4
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        assert [process.wait(60) for process in processes] == [0] * 4
    cache = LogpCache(tmp_path, {"model": "m"})
    rows = [f"{i:016d}".encode() for i in range(400)]
    found = cache.lookup(rows)
    assert (found.chosen == np.arange(400)).all()
    parts = list(cache.folder.glob("*.parquet"))
    assert len(parts) == 40, "equal parts have one name"
    assert all(map(part_is_whole, parts))
    assert json.loads((cache.folder / "key.json").read_text()) == {"model": "m"}
    assert not list(cache.folder.glob(".tmp-*"))


def test_a_clock_that_was_set_back_does_not_matter_to_a_lock(tmp_path: Path) -> None:
    note = {"pid": 1, "host": socket.gethostname(), "since": "2999-01-01T00:00:00+00:00"}
    (tmp_path / "lock").write_text(json.dumps(note))
    os.utime(tmp_path / "lock", (time.time() + 1e6, time.time() + 1e6))
    with hold(tmp_path / "lock", what="it"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
