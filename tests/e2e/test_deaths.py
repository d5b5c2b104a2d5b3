"""Runs that are cancelled, killed or left alone: no process survives, the state is right, and they
can be gone on with."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from bench import Bench, Values
from desk import ROOT, Desk, FlowRun, wait_until
from histories import flip
from processes import is_free, stages_of

from sdpo.processes.devices import LOCK_DIR, SHARE
from sdpo.store.run_folder import RunFolder

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


STUBBORN = """
import os, signal, subprocess, sys, time
if "sdpo.stages" in sys.orig_argv and "step-1.json" in sys.orig_argv[-1]:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
"""
"""What every Python of a run does when it starts: that of a step leaves a child in a session of its
own that ignores SIGTERM."""


@pytest.fixture
def stubborn(tmp_path: Path) -> Values:
    """Variables of a run whose steps have such a child, on a host with locks of its own."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(STUBBORN)
    return {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        LOCK_DIR: str(tmp_path / "locks"),
        SHARE: "",
    }


def stubborn_children(run: FlowRun) -> list[psutil.Process]:
    return [p for p in run.all_processes() if "time.sleep(600)" in p.cmdline()[-1]]


def start(desk: Desk, parameters: Values, *, environment: Values | None = None) -> FlowRun:
    run = desk.submit("sdpo-align-full/align-full", parameters, environment=environment)
    run.until_training(folder_of(parameters))
    return run


def folder_of(parameters: Values) -> Path:
    return Path(parameters["store"]["runs_dir"]) / parameters["name"]


def assert_nothing_is_left(run: FlowRun, parameters: Values, *, within_s: float = 1) -> None:
    wait_until(lambda: not run.all_processes(), within_s, "the end of its processes")
    assert stages_of(folder_of(parameters)) == []
    # A process that is about to be gone may show no environment any more and have its files open.
    wait_until(lambda: is_free(RunFolder(folder_of(parameters)).lock_file), 1, "a free run")


def assert_device_is_free(environment: Values) -> None:
    wait_until(lambda: is_free(Path(environment[LOCK_DIR]) / "cpu.lock"), 1, "a free device")


def test_children_that_ignore_sigterm_in_their_own_session_end_with_a_cancelled_run(
    desk: Desk, long: Values, stubborn: Values
) -> None:
    run = start(desk, long, environment=stubborn)
    assert stubborn_children(run)
    asked_s = time.time()
    run.cancel()
    assert run.wait(60, ("CANCELLED",)) == "CANCELLED"
    assert run.ended_s - asked_s < 35
    assert_nothing_is_left(run, long)
    assert_device_is_free(stubborn)


def test_a_killed_engine_is_crashed_at_once_and_leaves_nothing_not_even_such_children(
    desk: Desk, long: Values, stubborn: Values
) -> None:
    run = start(desk, long, environment=stubborn)
    assert stubborn_children(run)
    engine = run.engine
    assert engine is not None
    killed_s = time.time()
    engine.send_signal(signal.SIGKILL)
    assert run.wait(60) == "CRASHED"
    assert run.ended_s - killed_s < 15
    assert_nothing_is_left(run, long, within_s=25)
    assert_device_is_free(stubborn)


def test_a_killed_worker_takes_its_runs_with_it(desk: Desk, long: Values) -> None:
    run = start(desk, long)
    with desk.without_worker():
        assert run.wait(30) == "CRASHED"
        assert_nothing_is_left(run, long, within_s=15)
    run.retry()
    assert run.wait() == "COMPLETED"


def test_a_worker_that_is_asked_to_end_ends_its_runs_first(desk: Desk, long: Values) -> None:
    run = start(desk, long)
    started = desk.processes.worker
    assert started is not None
    worker = started.process
    assert worker is not None
    worker.terminate()
    try:
        worker.wait(40)
        assert run.wait(20) == "CRASHED"
        assert_nothing_is_left(run, long, within_s=15)
    finally:
        desk.restart("worker")


def test_a_run_that_is_suspended_saves_its_state_and_goes_on_when_it_is_resumed(
    desk: Desk, long: Values
) -> None:
    run = start(desk, long)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    details = {"pause_reschedule": True, "pause_timeout": later}
    run.set_state(type="PAUSED", name="Suspended", state_details=details)  # the UI's button
    wait_until(lambda: not run.all_processes(), 60, "the end of its processes")
    assert stages_of(folder_of(long)) == []
    assert (run.state, run.read()["state"]["name"]) == ("PAUSED", "Suspended")
    assert not RunFolder(folder_of(long)).complete_steps()
    desk.api(f"/flow_runs/{run.id}/resume", {})
    assert run.wait() == "COMPLETED"
    assert any("goes on after optimizer step" in line for line in run.lines())


def test_a_flipped_byte_never_ends_in_completed_with_a_wrong_path(
    desk: Desk, finished_copy: Bench
) -> None:
    folder = RunFolder(finished_copy.runs / "tiny")
    before = folder.read_record("step-1")
    assert before is not None
    model = folder.model(1) / "model.safetensors"
    whole = model.read_bytes()
    flip(model, at=-100)
    run = desk.submit("sdpo-align-full/align-full", finished_copy.values())
    assert run.wait() == "COMPLETED"
    assert model.read_bytes() == whole
    model.unlink()
    run.retry()
    assert run.wait(states=("PENDING", "RUNNING")) != "COMPLETED"
    assert run.wait() == "COMPLETED"
    assert model.read_bytes() == whole
    again = folder.read_record("step-1")
    assert again is not None
    assert again["outputs"] == before["outputs"]
    said = [line for line in run.lines() if line.startswith("step-1 begins: ")]
    assert len(said) == 2
    assert all("model.safetensors" in line for line in said)
