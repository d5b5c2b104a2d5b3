"""``sdpo status`` tells what runs, what waits and for what, and what ended how."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bench import Bench
from command_line import Sdpo
from histories import flip
from processes import Running, start

from sdpo.processes.devices import LOCK_DIR, SHARE
from sdpo.store.run_folder import RunFolder
from sdpo.store.run_status import By, Word, read_status, write_word
from sdpo.system.locks import hold

Values = dict[str, Any]


def told(sdpo: Sdpo, bench: Bench, name: str) -> Values:
    """What ``--json`` says of one run."""
    called = sdpo("status", name, "--json", "--runs-dir", bench.runs)
    assert called.code == 0, called.told
    content: Values = json.loads(called.out)
    return content


def trained(run: Path) -> Callable[[], bool]:
    """Whether the first step of a run has made some optimizer steps."""
    metrics = run / "step-1" / "metrics.jsonl"
    return lambda: metrics.is_file() and metrics.read_text().count("\n") > 3


def submit(bench: Bench, name: str) -> Running:
    """A run that would take long."""
    recipe = bench.write({"name": name, "training": {"epochs": 200}}, name=f"{name}.yaml")
    return start("run", recipe, log=bench.folder / f"{name}.txt")


@pytest.mark.timeout(600)
def test_one_runs_one_waits_one_is_stopped_and_one_killed(
    bench: Bench, sdpo: Sdpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOCK_DIR, str(bench.folder / "locks"))
    monkeypatch.delenv(SHARE, raising=False)
    runs = ("--runs-dir", bench.runs)
    first = submit(bench, "first")
    second: Running | None = None
    try:
        first.until(trained(bench.runs / "first"))
        first.until(lambda: told(sdpo, bench, "first")["word"]["done"] is not None)
        now = told(sdpo, bench, "first")
        word = now["word"]
        assert now["state"] == "running"
        assert (now["steps"], now["planned"]) == (0, 2)
        assert (word["node"], word["stage"]) == ("step-1", "step-1")
        assert 0 <= word["done"] <= word["total"]
        assert word["by"]["pid"] == first.process.pid
        shown = sdpo("status", "first", *runs).told
        assert f"running by process {first.process.pid} of " in shown
        first.until(lambda: "left" in sdpo("status", "first", *runs).told)

        second = submit(bench, "second")
        second.until((bench.runs / "second" / "run.yaml").is_file)
        second.until(lambda: told(sdpo, bench, "second")["state"] == "waiting")
        shown = sdpo("status", "second", *runs).told
        assert f"waiting for device cpu, in use by process {first.process.pid} on" in shown
        assert "launch.share_device=true (--set)" in shown
        listed = sdpo("status", *runs).out.splitlines()
        assert [line.split()[:2] for line in listed if " of 2 " in line] == [
            ["first", "running"],
            ["second", "waiting"],
        ]

        first.process.send_signal(signal.SIGINT)
        assert first.wait() == 130, first.said
        stopped = told(sdpo, bench, "first")
        assert stopped["state"] == "interrupted"
        done, total = stopped["word"]["saved"]["step-1"]
        assert 0 < done < total
        shown = sdpo("status", "first", *runs).told
        assert f"saved: step-1 at optimizer step {done} of {total}" in shown
        assert f"go on with: sdpo resume first --runs-dir {bench.runs}" in shown

        second.until(trained(bench.runs / "second"))
        assert told(sdpo, bench, "second")["state"] == "running", "it waits no longer"
        second.kill_tree()
        killed = told(sdpo, bench, "second")
        assert killed["state"] == "killed"
        shown = sdpo("status", "second", *runs).told
        assert f"killed: process {second.process.pid} of" in shown
        assert "at step-1: " in shown
        assert "go on with: sdpo resume second" in shown
    finally:
        for running in (first, second):
            if running is not None:
                running.kill_tree()


def test_a_run_that_failed_says_why_until_it_is_gone_on_with(bench: Bench, sdpo: Sdpo) -> None:
    recipe = bench.write()
    broken = (
        "import sdpo.training.trainer as it\n"
        "def fail(*_, **__):\n    raise ValueError('the cat is on the keyboard')\n"
        "it.Trainer.train = fail\n"
    )
    called = sdpo("run", recipe, first=broken)
    assert called.code == 1, called.told
    assert told(sdpo, bench, "tiny")["state"] == "failed"
    shown = sdpo("status", "tiny", "--runs-dir", bench.runs).told
    assert "the cat is on the keyboard" in shown
    assert "go on with: sdpo resume tiny" in shown
    assert sdpo("run", recipe).code == 0
    assert told(sdpo, bench, "tiny")["state"] == "done"
    shown = sdpo("status", "tiny", "--runs-dir", bench.runs).told
    assert "keyboard" not in shown
    assert "go on with" not in shown


@pytest.mark.timeout(300)
def test_why_a_step_was_made_again_is_told_long_after(finished_copy: Bench, sdpo: Sdpo) -> None:
    flip(finished_copy.runs / "tiny" / "step-2" / "model" / "model.safetensors", at=5000)
    shutil.rmtree(finished_copy.folder / "cache" / "tokens")
    finished_copy.run()
    why = "step-2/model/model.safetensors was changed"
    finished_copy.run()  # does nothing, and says nothing
    assert told(sdpo, finished_copy, "tiny")["word"]["again"]["step-2"] == why
    shown = sdpo("status", "tiny", "--runs-dir", finished_copy.runs).told
    cause, follows = f"step-2 was made again: {why}", "tokens was made: not cached"
    assert cause in shown
    assert shown.index(cause) < shown.index(follows), "what only has to be there again is last"
    assert "step-1 was made again" not in shown


def test_who_watches_a_run_sees_it_go_on_and_is_done_when_it_is(bench: Bench) -> None:
    recipe = bench.write()
    running = start("run", recipe, log=bench.folder / "run.txt", quick=True)
    try:
        running.until((bench.runs / "tiny" / "logs" / "status.json").is_file)
        runs = ("--runs-dir", bench.runs)
        watchers = [
            start("status", "tiny", "--watch", *runs, log=bench.folder / "plain.txt"),
            start("status", "tiny", "--watch", "--json", *runs, log=bench.folder / "json.txt"),
        ]
        assert running.wait() == 0
        assert [watcher.wait(30) for watcher in watchers] == [0, 0]
    finally:
        running.kill_tree()
    plain = (bench.folder / "plain.txt").read_text().splitlines()
    assert plain[0].startswith("tiny: running, ")
    assert plain[-1] == "tiny: done, 2 of 2 steps"
    lines = [json.loads(line) for line in (bench.folder / "json.txt").read_text().splitlines()]
    assert (lines[0]["state"], lines[-1]["state"]) == ("running", "done")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "another file": lambda path: path.write_text('{"state": "asleep", "by": 3}'),
    "no text": lambda path: path.write_bytes(b"\xff\xfe{"),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_its_word_a_run_is_what_its_records_say(
    finished_copy: Bench, sdpo: Sdpo, damage: str
) -> None:
    word = finished_copy.runs / "tiny" / "logs" / "status.json"
    word.unlink()
    DAMAGES[damage](word)
    assert told(sdpo, finished_copy, "tiny")["state"] == "done"
    shown = sdpo("status", "tiny", "--runs-dir", finished_copy.runs)
    assert "2 of 2 steps are complete done" in shown.told
    (finished_copy.runs / "tiny" / "step-2" / "record.json").unlink()
    assert told(sdpo, finished_copy, "tiny")["state"] == "interrupted"


def a_word(**changes: Any) -> Word:
    now = datetime.now(UTC)
    by = By(pid=1, host="elsewhere", user="ann", flow_run="5f1c")
    return Word(state="running", by=by, since=now, updated=now, **changes)


def test_who_was_killed_while_it_waited_had_waited(finished_copy: Bench, sdpo: Sdpo) -> None:
    run = RunFolder(finished_copy.runs / "tiny")
    (run.path / "step-2" / "record.json").unlink()
    waits = a_word().model_copy(
        update={"state": "waiting", "waits_for": "waiting for device x", "by": By.this_process()}
    )
    write_word(run, waits)
    shown = sdpo("status", "tiny", "--runs-dir", finished_copy.runs).told
    assert "killed: process" in shown
    assert "waiting for device x" in shown
    assert "killed" in sdpo("status", "--runs-dir", finished_copy.runs).out


def test_on_another_host_silence_tells_since_locks_may_not(finished_copy: Bench) -> None:
    run = RunFolder(finished_copy.runs / "tiny")
    (run.path / "step-2" / "record.json").unlink()
    write_word(run, a_word())
    assert read_status(run).state == "running"
    late = datetime.now(UTC) - timedelta(minutes=11)
    write_word(run, a_word().model_copy(update={"updated": late}))
    assert read_status(run).state == "killed"


def test_who_holds_a_finished_run_works_on_it(finished_copy: Bench) -> None:
    run = RunFolder(finished_copy.runs / "tiny")
    write_word(run, a_word(node="report"))
    assert read_status(run).state == "done", "nobody holds it, and nothing is missing"
    with hold(run.lock_file, what="run tiny"):
        assert read_status(run).state == "running"
        assert read_status(run).word is not None


def test_a_word_with_control_characters_reaches_no_terminal(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    run = RunFolder(finished_copy.runs / "tiny")
    (run.path / "step-2" / "record.json").unlink()
    evil = "\x1b]52;c;aGk=\x07[bold]"
    write_word(run, a_word().model_copy(update={"state": "failed", "why": evil}))
    for arguments in (("status", "tiny"), ("status",), ("status", "tiny", "--json")):
        shown = sdpo(*arguments, "--runs-dir", finished_copy.runs)
        assert shown.code == 0
        assert "\x1b" not in shown.out
        assert "\x07" not in shown.out


def test_a_word_that_cannot_be_written_ends_no_run(finished_copy: Bench) -> None:
    run = RunFolder(finished_copy.runs / "tiny")
    run.status_file.unlink()
    run.status_file.mkdir()
    write_word(run, a_word())
    assert [path.name for path in run.status_file.parent.glob(".*")] == []
