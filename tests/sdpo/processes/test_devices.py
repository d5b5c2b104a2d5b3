"""One stage per device at a time: between processes, between whole runs, and after a death."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
from bench import Bench, Outcome, Values
from processes import Running, start

from sdpo.config import LaunchConfig, RunConfig
from sdpo.errors import InUseError, UserError
from sdpo.events import Event, WaitEvent
from sdpo.identity.payloads import run_identity
from sdpo.processes.devices import LOCK_DIR, SHARE, device_names, hold_devices, lock_folder
from sdpo.system.locks import hold

CPU = LaunchConfig(device="cpu")

HOLDER = """
import sys
from sdpo.config import LaunchConfig
from sdpo.processes.devices import hold_devices
launch = LaunchConfig(device="cpu")
with hold_devices(launch, run="first", listen=lambda event: None) as handles:
    if sys.argv[1:]:  # a stage that has the locks too, and outlives this process
        import subprocess
        code = "import sys; sys.stdin.read()"
        subprocess.Popen([sys.executable, "-c", code], pass_fds=handles)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of the test's own, on which devices are not shared."""
    monkeypatch.setenv(LOCK_DIR, str(tmp_path / "locks"))
    monkeypatch.setenv(SHARE, "")
    return tmp_path / "locks"


@contextmanager
def holder(*arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize(
    ("visible", "processes", "names"),
    [
        (None, 1, ["cuda:0"]),
        (None, 2, ["cuda:0", "cuda:1"]),
        ("2,3", 1, ["cuda:2"]),
        ("3, 2", 2, ["cuda:3", "cuda:2"]),
        ("GPU-5a1f", 1, ["cuda:GPU-5a1f"]),
    ],
)
def test_the_devices_of_a_stage_are_those_that_its_processes_see(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, processes: int, names: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_names(LaunchConfig(device="cuda", processes=processes)) == names
    assert device_names(LaunchConfig(device="cpu", processes=processes)) == ["cpu"]


def test_who_waits_is_told_which_process_holds_the_device_and_for_which_run(locks: Path) -> None:
    events: list[Event] = []
    with holder() as other:

        def release(event: Event) -> None:
            events.append(event)
            assert other.stdin is not None
            other.stdin.close()

        with hold_devices(CPU, run="second", listen=release) as handles:
            assert len(handles) == 1
            assert json.loads((locks / "cpu.lock").read_text())["run"] == "second"
    waiting, waited = events
    assert waited == WaitEvent(event="waited", what="device cpu")
    assert isinstance(waiting, WaitEvent)
    said, otherwise = waiting.message.split("; ")
    assert said.startswith(f"waiting for device cpu, in use by process {other.pid} on host")
    assert said.endswith("(run first)")
    assert "launch.share_device=true (--set)" in otherwise
    assert f"{SHARE}=1" in otherwise


def test_a_holder_that_was_killed_has_let_go() -> None:
    events: list[Event] = []
    with holder() as other:
        other.kill()
        other.wait()
        with hold_devices(CPU, run="second", listen=events.append):
            pass
    assert "device cpu was left behind by process" in events[0]["message"]


def test_a_stage_that_outlives_its_parent_holds_the_device_until_it_ends(locks: Path) -> None:
    with holder("with a stage") as other:
        other.kill()
        other.wait()
        with (
            pytest.raises(UserError, match="its stage is still ending"),
            hold(locks / "cpu.lock", what="device cpu"),
        ):
            pytest.fail("the stage uses it")
        assert other.stdin is not None
        other.stdin.close()  # the stage's too
        with hold_devices(CPU, run="second", listen=lambda event: None):
            pass


def test_other_devices_are_free_and_one_that_is_shared_is_not_waited_for(locks: Path) -> None:
    def refuse(event: Event) -> None:
        pytest.fail(str(event))

    with holder():
        with hold_devices(LaunchConfig(device="cuda"), run="gpu", listen=refuse) as handles:
            assert len(handles) == 1
            assert (locks / "cuda:0.lock").exists()
        sharing = LaunchConfig(device="cpu", share_device=True)
        with hold_devices(sharing, run="second", listen=refuse) as handles:
            assert handles == ()


def test_what_else_limits_the_devices_is_held_as_long() -> None:
    said: list[object] = []

    @contextmanager
    def occupy(devices: object) -> Iterator[None]:
        said.append(devices)
        yield
        said.append("free")

    with hold_devices(CPU, run="r", listen=said.append, occupy=occupy):
        said.append("held")
    assert said == [["cpu"], "held", "free"]


def test_a_folder_of_locks_that_is_somebody_elses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LOCK_DIR)
    assert lock_folder().stat().st_mode & 0o077 == 0
    monkeypatch.setattr("os.getuid", lambda: 54321)
    (Path("/tmp") / "sdpo-devices-54321").symlink_to(tmp_path)
    try:
        with pytest.raises(UserError, match="belongs to somebody else"):
            lock_folder()
    finally:
        (Path("/tmp") / "sdpo-devices-54321").unlink()


def test_sharing_a_device_does_not_make_another_run() -> None:
    sharing = RunConfig(launch=LaunchConfig(share_device=True))
    assert run_identity(sharing, {}) == run_identity(RunConfig(), {})


# --- whole runs


@pytest.fixture
def warm(finished_bench: Bench, finished: Outcome, tmp_path: Path) -> Bench:
    """The finished run's caches, so that a new run comes to its training at once."""
    assert finished.folder.is_dir()
    shutil.copytree(finished_bench.folder / "cache", tmp_path / "cache")
    return Bench(tmp_path, finished_bench.recipe)


@contextmanager
def submitted(bench: Bench, name: str, *, quick: bool = False) -> Iterator[Running]:
    changes: Values = {"partition": {"strategy": "single"}, "training": {"max_steps": 2}}
    recipe = bench.write({"name": name, **changes}, name=f"{name}.yaml")
    running = start("run", recipe, log=bench.folder / f"{name}.txt", quick=quick)
    try:
        yield running
    finally:
        running.kill_tree()


def stage_times(run: Path) -> list[tuple[float, float]]:
    """When each stage that computes began and ended, by its own events."""
    found = []
    for path in sorted(run.glob("logs/step-*.events.jsonl")):
        times = [json.loads(line)["time"] for line in path.read_text().splitlines()]
        if times:
            found.append((times[0], times[-1]))
    return found


@pytest.mark.timeout(600)
def test_two_submissions_with_one_device_never_overlap_and_both_complete(warm: Bench) -> None:
    with submitted(warm, "a", quick=True) as first, submitted(warm, "b", quick=True) as second:
        assert first.wait(250) == 0, first.said
        assert second.wait(250) == 0, second.said
    times = {name: stage_times(warm.runs / name) for name in ("a", "b")}
    assert [len(stages) for stages in times.values()] == [1, 1]
    for (begin, end), (other_begin, other_end) in product(times["a"], times["b"]):
        assert end < other_begin or other_end < begin


@pytest.mark.timeout(600)
def test_the_device_is_free_when_a_run_that_holds_it_is_killed(warm: Bench) -> None:
    with submitted(warm, "a") as first:
        first.until(lambda: bool(stage_times(warm.runs / "a")))
        with submitted(warm, "b") as second:
            second.until(lambda: "waiting for device cpu" in second.said)
            first.kill_tree()
            assert second.wait(250) == 0, second.said
            assert "device cpu was left behind by process" in second.said


def test_what_slurm_allots_to_a_job_is_waited_for_within_the_job_alone(
    locks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every job may call its own first GPU 0."""

    def hold_now() -> None:
        with hold_devices(CPU, run="second", listen=lambda _: None, wait=False):
            pass

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "node1")
    with hold_devices(CPU, run="first", listen=lambda _: None):
        with pytest.raises(InUseError):
            hold_now()
        monkeypatch.setenv("SLURMD_NODENAME", "node2")
        hold_now()
        monkeypatch.setenv("SLURM_JOB_ID", "8")
        hold_now()
        monkeypatch.delenv("SLURM_JOB_ID")
        hold_now()
    assert {path.name for path in locks.glob("*7*")} == {
        *("slurm-7-node1-cpu.lock", "slurm-7-node2-cpu.lock")
    }
