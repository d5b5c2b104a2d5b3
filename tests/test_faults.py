"""What goes wrong around a run: deaths, full disks, other clocks, other folders, another model.

The full campaign, with random moments and random bytes, is ``tests/faults/campaign.py``.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bench import Bench, Outcome, Values
from command_line import Sdpo, caller
from desk import wait_until
from forked_stages import forked_stages
from processes import Running, is_free, stages_of, start

from sdpo.chain.run_chain import run_chain
from sdpo.config.load import make_config
from sdpo.errors import DiskFullError, Fault
from sdpo.hooks import Host
from sdpo.processes.disk_space import step_needs
from sdpo.store.resume_states import states_folder
from sdpo.store.run_folder import RunFolder

EVERY_STEP = {"training": {"checkpoint_every": 1}}


@pytest.fixture
def sdpo(capsys: pytest.CaptureFixture[str]) -> Sdpo:
    return caller(capsys)


@pytest.fixture
def warm(finished_bench: Bench, finished: Outcome, tmp_path: Path) -> Bench:
    """The finished run's caches, so that a new run comes to its training at once."""
    assert finished.folder.is_dir()
    shutil.copytree(finished_bench.folder / "cache", tmp_path / "cache")
    return Bench(tmp_path, finished_bench.recipe)


def folder_of(bench: Bench) -> RunFolder:
    return RunFolder(bench.runs / "tiny")


def assert_same_models(outcome: Outcome, whole: Outcome) -> None:
    """Both steps published and logged what the run did that nothing disturbed."""
    for step in (1, 2):
        node = f"step-{step}"
        assert outcome.record(node)["outputs"] == whole.record(node)["outputs"], node
        assert outcome.metrics(step) == whole.metrics(step), node
        assert not states_folder(outcome.run.step(step)).exists()
    assert not list(outcome.folder.rglob(".tmp-*"))


def resumed_at(outcome: Outcome) -> list[int]:
    """Optimizer steps after which a step went on."""
    return [event["optimizer_step"] for event in outcome.events if event["event"] == "resume"]


# --- deaths

DEATHS = {
    "in the middle of training": """
import sdpo.training.trainer as module
step = module.Trainer._optimizer_step
def die(self, *args, **kwargs):
    return step(self, *args, **kwargs) if self.progress.step < 4 else kill()
module.Trainer._optimizer_step = die
""",
    "with a resume state half written": """
import sdpo.stages.training_state as state
import sdpo.stages.resume_states as module
def die(trainer, folder, *, held):
    names = state.save_training(trainer, folder, held=held)
    return names if trainer.progress.step < 4 else kill()
module.save_training = die
""",
    "with the model half written": """
import sdpo.stages.save_model as module
save = module.save_policy
def die(policy, folder, **kwargs):
    save(policy, folder, **kwargs)
    kill()
module.save_policy = die
""",
    "between the model and its record": """
import sdpo.stages.publish as module
module.write_card = lambda *args, **kwargs: kill()
""",
    "right after the record": """
import sdpo.store.resume_states as module
module.discard = lambda *args: kill()
""",
}
KILL = """
import os, signal
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_training(bench: Bench, changes: Values = EVERY_STEP) -> None:
    """Start a run, whose first step is killed after its fourth optimizer step."""
    killed = pytest.raises(Fault, match="step-1 ended with signal SIGKILL")
    with forked_stages(first=KILL + DEATHS["in the middle of training"]), killed:
        run_chain(make_config(bench.values(changes)))


@pytest.mark.parametrize("moment", DEATHS)
def test_a_run_whose_stage_is_killed_goes_on_to_the_same_models(
    warm: Bench, finished: Outcome, moment: str
) -> None:
    killed = pytest.raises(Fault, match="step-1 ended with signal SIGKILL")
    with forked_stages(first=KILL + DEATHS[moment]), killed:
        run_chain(make_config(warm.values(EVERY_STEP)))
    outcome = warm.run(EVERY_STEP)
    complete = moment == "right after the record"
    assert ("step-1" in outcome.result.executed) is not complete
    total = finished.record("step-1")["optimizer_steps"]
    expected = {"in the middle of training": [4], "with a resume state half written": [3]}
    assert resumed_at(outcome) == expected.get(moment, [] if complete else [total - 1])
    assert_same_models(outcome, finished)


def started(bench: Bench, *arguments: str) -> Running:
    recipe = bench.write(EVERY_STEP | {"training": SLOW})
    return start("run", recipe, *arguments, log=bench.folder / "said.txt")


SLOW = {"checkpoint_every": 1, "epochs": 40, "checkpoints_kept": 2}
"""Long enough to be met while it trains."""


def is_training(bench: Bench) -> bool:
    return len(list(states_folder(folder_of(bench).step(1)).glob("[0-9]*"))) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_call_saves_its_state_ends_with_130_and_leaves_no_process(
    warm: Bench, number: signal.Signals
) -> None:
    running = started(warm)
    running.until(lambda: is_training(warm))
    before = max(states_folder(folder_of(warm).step(1)).glob("[0-9]*"))
    children = psutil.Process(running.process.pid).children(recursive=True)
    assert children
    began = time.monotonic()
    running.process.send_signal(number)
    assert running.wait() == 130, running.said
    assert time.monotonic() - began < 11
    assert not any(child.is_running() for child in children)
    assert not stages_of(folder_of(warm).path)
    assert max(states_folder(folder_of(warm).step(1)).glob("[0-9]*")) >= before
    assert "interrupted: what was complete stands; go on with: sdpo resume tiny" in running.said
    assert "Traceback" not in running.said


def test_a_call_that_is_killed_takes_its_stage_with_it_and_leaves_the_run_free(warm: Bench) -> None:
    running = started(warm)
    running.until(lambda: is_training(warm))
    stages = stages_of(folder_of(warm).path)
    running.process.kill()
    running.wait()
    _, alive = psutil.wait_procs(stages, timeout=15)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    wait_until(lambda: is_free(folder_of(warm).lock_file), 15, "a free run")
    config = make_config(warm.values({"training": SLOW}))
    events: list[dict] = []

    class Enough(Exception):
        pass

    def listen(event) -> None:
        events.append(event)
        if event["event"] == "resume":
            raise Enough

    with pytest.raises(Enough):
        run_chain(config, host=Host(listen=listen))
    assert events[-1]["optimizer_step"] >= 2


def test_resume_takes_the_run_by_its_name_and_says_where_it_goes_on(
    warm: Bench, finished: Outcome, sdpo: Sdpo
) -> None:
    recipe = warm.write(EVERY_STEP)
    killed_while_training(warm)
    Path(recipe).unlink()
    called = sdpo("resume", "tiny", "--runs-dir", warm.runs)
    assert called.code == 0, called.told
    assert "step-1 goes on after optimizer step 4 of 6" in called.told
    run = folder_of(warm)
    for step in (1, 2):
        record = run.read_record(f"step-{step}")
        assert record is not None
        assert record["outputs"] == finished.record(f"step-{step}")["outputs"]


def test_resume_of_a_run_that_is_not_there_names_those_that_are(
    finished_copy: Bench, sdpo: Sdpo
) -> None:
    called = sdpo("resume", "tinny", "--runs-dir", finished_copy.runs)
    assert called.code == 2
    assert "no run at" in called.told
    assert "runs there: tiny" in called.told


# --- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


FILL = """
import sdpo.{module} as module
from pathlib import Path
real = module.{name}
def full(*args, **kwargs):
    with Path({filler!r}).open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
    return real(*args, **kwargs)
module.{name} = full
"""


@pytest.mark.parametrize(
    ("module", "name"), [("stages.save_model", "save_policy"), ("stages.publish", "write_card")]
)
def test_a_disk_that_is_full_while_publishing_is_told_and_the_run_goes_on_when_there_is_room(
    warm: Bench, finished: Outcome, small_disk: Path, sdpo: Sdpo, module: str, name: str
) -> None:
    filler, runs = small_disk / "filler", small_disk / "runs"
    cache = {"store": {"cache_dir": str(warm.folder / "cache")}}
    recipe = warm.write(EVERY_STEP | cache)
    arguments = (recipe, "--runs-dir", runs)
    filling = FILL.format(module=module, name=name, filler=str(filler))
    called = sdpo("run", *arguments, first=filling)
    assert called.code == 1, called.told
    assert "no space is left on the disk of" in called.told
    assert "go on with: sdpo resume tiny" in called.told
    assert "Traceback" not in called.told
    run = RunFolder(runs / "tiny")
    assert run.complete_steps() == []
    for node in ("data", "reserve", "plan"):
        record = run.read_record(node)
        assert record is not None
        assert run.damage(record) == []
    filler.unlink()
    again = sdpo("resume", "tiny", "--runs-dir", runs)
    assert again.code == 0, again.told
    assert "goes on after optimizer step 5 of 6" in again.told
    for step in (1, 2):
        record = run.read_record(f"step-{step}")
        assert record is not None
        assert record["outputs"] == finished.record(f"step-{step}")["outputs"]


def test_a_step_that_the_disk_has_no_room_for_is_refused_with_the_numbers(
    warm: Bench, small_disk: Path, sdpo: Sdpo
) -> None:
    cache = {"store": {"cache_dir": str(warm.folder / "cache")}}
    kept = {"training": {"checkpoint_every": 1, "checkpoints_kept": 400}}
    called = sdpo("run", warm.write(kept | cache), "--runs-dir", small_disk / "runs")
    assert called.code == 1
    assert "step-1 is not started, since the disk is too small for it" in called.told
    assert "resume states" in called.told
    assert "free" in called.told
    assert "Traceback" not in called.told
    assert sdpo("run", warm.write(cache), "--runs-dir", small_disk / "runs").code == 0


def test_the_space_of_a_step_is_counted_in_fp32_with_moments_and_one_state_more(
    finished: Outcome, tmp_path: Path
) -> None:
    from safetensors import safe_open

    model = finished.run.model(1)
    with safe_open(model / "model.safetensors", "np") as file:
        numbers = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118
    training = make_config({"training": {"checkpoints_kept": 3}}).training
    options = {"run": tmp_path, "cache": tmp_path, "rows": 10}

    def needs(**changes) -> dict[str, int]:
        found = step_needs(model, training.model_copy(update=changes), **options)
        return {need.what: need.size_bytes for need in found}

    assert needs()["resume states"] == 4 * 3 * 4 * numbers, "four of them, of weights and moments"
    assert needs(optimizer="rmsprop")["resume states"] == 4 * 2 * 4 * numbers
    in_bytes = needs(optimizer="adamw_8bit")["resume states"]
    assert in_bytes == 4 * round((4 + 2 + 2 * 4 / 256) * numbers), "weights, moments, scales"
    assert needs()["weights"] >= 4 * numbers
    assert "resume states" not in needs(checkpoint_minutes=0.0)
    assert needs(lora_r=2)["resume states"] < needs()["resume states"]


# --- other folders, clocks and models


def test_a_read_only_run_folder_gives_one_clear_message(
    finished_copy: Bench, finished: Outcome, sdpo: Sdpo
) -> None:
    assert finished.folder.is_dir()
    run = folder_of(finished_copy).path
    mount = ["mount", "--bind", str(run), str(run)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a read-only folder needs the right to mount one: root may write anywhere")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
        called = sdpo("resume", "tiny", "--runs-dir", finished_copy.runs)
    finally:
        subprocess.run(["umount", "--lazy", str(run)], check=True)
    assert called.code == 2
    assert "Read-only file system" in called.told
    assert str(run) in called.told
    assert "Traceback" not in called.told


def test_a_run_that_was_moved_goes_on_where_it_is_now(
    warm: Bench, finished: Outcome, sdpo: Sdpo
) -> None:
    killed_while_training(warm)
    elsewhere = warm.folder / "elsewhere"
    elsewhere.mkdir()
    shutil.move(warm.runs, elsewhere / "moved")
    shutil.move(elsewhere / "moved" / "tiny", elsewhere / "moved" / "renamed")
    shutil.rmtree(warm.folder / "cache")
    called = sdpo("resume", "renamed", "--runs-dir", elsewhere / "moved")
    assert called.code == 0, called.told
    assert "goes on after optimizer step 4 of 6" in called.told
    assert not warm.runs.exists()
    record = RunFolder(elsewhere / "moved" / "renamed").read_record("step-2")
    assert record is not None
    assert record["outputs"] == finished.record("step-2")["outputs"]


def test_files_from_the_future_do_not_disturb_a_run(warm: Bench, finished: Outcome) -> None:
    """As they are after the clock was set back."""
    killed_while_training(warm)
    later = time.time() + 10 * 365 * 86400
    for path in warm.folder.rglob("*"):
        os.utime(path, (later, later))
    outcome = warm.run(EVERY_STEP)
    assert [event["optimizer_step"] for event in outcome.events if event["event"] == "resume"] == [
        4
    ]
    assert_same_models(outcome, finished)


def test_a_base_model_that_changed_meanwhile_is_refused_with_both_digests(
    warm: Bench, sdpo: Sdpo, demo_files
) -> None:
    model = warm.folder / "base"
    shutil.copytree(demo_files.model, model)
    named: Values = {"model": {"name_or_path": str(model)}}
    killed_while_training(warm, named)
    before = folder_of(warm).read_run().inputs["model"]
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for command in (("resume", "tiny", "--runs-dir", warm.runs), ("run", warm.write(named))):
        called = sdpo(*command)
        assert called.code == 2
        assert f"inputs.model: {before[:16]}" in called.told
    assert not folder_of(warm).complete_steps()


def test_two_calls_of_one_name_at_once_give_one_run(warm: Bench, finished: Outcome) -> None:
    recipe = warm.write(EVERY_STEP)
    logs = [warm.folder / f"said-{i}.txt" for i in range(2)]
    calls = [start("run", recipe, log=log, quick=True) for log in logs]
    codes = sorted(call.wait() for call in calls)
    said = " ".join(call.said for call in calls)
    assert codes[0] == 0, said
    assert codes[1] in (0, 2), said
    assert "Traceback" not in said
    outcome = warm.run(EVERY_STEP)
    assert outcome.result.executed == ()
    assert_same_models(outcome, finished)


def test_the_list_of_runs_shows_a_damaged_one_as_such(finished_copy: Bench, sdpo: Sdpo) -> None:
    shutil.copytree(finished_copy.runs / "tiny", finished_copy.runs / "broken")
    record = finished_copy.runs / "broken" / "step-1" / "record.json"
    record.write_text(record.read_text().replace("preference", "preferenze"))
    called = sdpo("status", "--runs-dir", finished_copy.runs)
    assert called.code == 0
    assert "damaged" in called.told
    assert "2 of 2" in called.told
    single = sdpo("status", "broken", "--runs-dir", finished_copy.runs)
    assert single.code == 1
    assert "record.json was changed" in single.told


def test_a_full_disk_is_a_fault_and_no_mistake_of_the_user() -> None:
    assert issubclass(DiskFullError, Fault)
