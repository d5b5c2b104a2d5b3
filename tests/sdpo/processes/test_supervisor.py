"""Real stages in real child processes; nothing here is simulated."""

import json
import os
import signal
import site
import stat
import subprocess
import sys
import venv
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from sdpo.config import LaunchConfig, ModelConfig, TrainingConfig
from sdpo.errors import DiskFullError, Fault, Interrupted, UserError
from sdpo.events import WarningEvent
from sdpo.processes import supervisor
from sdpo.processes.stage_specs import ExportSpec, TokeniseSpec, ViewSpec, read_spec
from sdpo.processes.supervisor import run_stage
from sdpo.system.locks import hold

from ..training_helpers.runs import prepare_run

COMMON = {
    "model": ModelConfig(),
    "launch": LaunchConfig(device="cpu", strategy="single", threads=1),
}


@pytest.fixture
def export(save_model, tmp_path):
    """The stage that copies a tiny model: it says ``phase`` before it loads it."""
    return ExportSpec(
        name="export",
        run=tmp_path / "run",
        source=save_model(),
        out=tmp_path / "out",
        dtype="bfloat16",
        **COMMON,
    )


@pytest.fixture
def standing(export):
    """As ``export``, of a model whose own code waits: the stage is not done before it is ended.

    A tiny model would be copied by the time that a test has found the process on a busy machine.
    """
    config = export.source / "config.json"
    own = {"auto_map": {"AutoConfig": "own.Config"}, "model_type": "standing"}
    config.write_text(json.dumps(json.loads(config.read_text()) | own))
    (export.source / "own.py").write_text("import time\n\ntime.sleep(60)\n")
    trusting = ModelConfig(trust_remote_code=True)
    return export.model_copy(update={"model": trusting})


@pytest.fixture
def broken(tmp_path):
    """A stage that fails at once: its file is no token file."""
    (tmp_path / "tokens.arrow").write_bytes(b"not arrow")
    return ViewSpec(
        name="view",
        run=tmp_path / "run",
        tokenizer=tmp_path,
        tokens=tmp_path / "tokens.arrow",
        row=0,
        **COMMON,
    )


def without_the_project(folder: Path) -> Path:
    """A Python with the packages of this one, where this project itself is not installed."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/*/site-packages")
    # Lines of a .pth file are folders; .pth files there, as of an editable install, are not read.
    (packages / "beside.pth").write_text("\n".join(site.getsitepackages()))
    return python


def stages(spec) -> list[psutil.Process]:
    """Processes that run the stage of ``spec``, oldest first (it may just be forking another)."""
    wanted = str(spec.run / "logs" / f"{spec.name}.json")
    found = []
    for process in psutil.process_iter():
        try:
            if wanted in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=psutil.Process.create_time)


def test_a_spec_comes_back_from_its_file_as_it_was(export, broken, tmp_path):
    for spec in (export, broken):
        path = tmp_path / f"{spec.name}.json"
        path.write_text(spec.model_dump_json())
        assert read_spec(path) == spec


def test_a_stage_does_its_work_and_returns_its_result(export):
    heard = []
    result = run_stage(export, listen=heard.append)
    assert result["out"] == str(export.out)
    assert result["dtype"] == "bfloat16"
    assert (export.out / "model.safetensors").is_file()
    assert (export.out / "tokenizer.json").is_file()
    assert [event["phase"] for event in heard if event["event"] == "phase"] == ["load"]
    assert not any(event["event"] in ("result", "error") for event in heard)
    assert export.log.is_file()
    assert stages(export) == []


@pytest.mark.usefixtures("quick_stages")
@pytest.mark.parametrize("kept", [[], ["README.md"], ["lineage.json"]])
def test_a_copy_of_a_model_whose_card_is_not_whole_has_none_and_that_is_said(export, kept):
    for name in kept:
        (export.source / name).write_text("{}")
    events = []
    run_stage(export, listen=events.append)
    (warning,) = [event for event in events if isinstance(event, WarningEvent)]
    assert warning.message.startswith(f"{export.source} has no ")
    assert warning.message.endswith("the copy has no card")
    assert all(name not in warning.message for name in kept)
    assert not {"README.md", "lineage.json"} & {path.name for path in export.out.iterdir()}


def test_a_stage_that_the_users_files_break_ends_in_its_own_message(tmp_path):
    (tmp_path / "no tokenizer").mkdir()
    spec = TokeniseSpec(
        name="tokenise",
        run=tmp_path / "run",
        tokenizer=tmp_path / "no tokenizer",
        pairs=tmp_path / "pairs.parquet",
        out=tmp_path / "tokens.arrow",
        max_length=64,
        clock=datetime(2024, 1, 2, tzinfo=UTC).isoformat(),
        end_token_ids=[],
        **COMMON,
    )
    with pytest.raises(UserError, match=r"^the tokenizer in .*no tokenizer cannot be loaded"):
        run_stage(spec, listen=lambda event: None)
    assert stages(spec) == []


@pytest.mark.usefixtures("quick_stages")
def test_a_stage_that_fails_is_a_fault_that_names_its_log(broken):
    with pytest.raises(Fault, match="cannot be read as stored tokens") as caught:
        run_stage(broken, listen=lambda event: None)
    assert str(caught.value).endswith(f"(log: {broken.log})")
    assert "Traceback" in broken.log.read_text()


def test_a_stage_that_cannot_even_start_is_a_fault_that_names_its_log(broken, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    with pytest.raises(Fault, match=r"view ended with exit code 1: .* \(log: .*view\.log\)"):
        run_stage(broken, listen=lambda event: None)


def test_an_error_of_the_attempt_before_does_not_come_back(broken, monkeypatch):
    with pytest.raises(Fault, match="cannot be read as stored tokens"):
        run_stage(broken, listen=lambda event: None)
    monkeypatch.setenv("PYTHONHOME", "/nonexistent")
    with pytest.raises(Fault, match="view ended with exit code 1"):
        run_stage(broken, listen=lambda event: None)


def test_a_stage_that_is_killed_is_a_fault_that_names_the_signal(standing):
    def kill(event) -> None:
        for process in stages(standing):
            process.kill()

    with pytest.raises(Fault, match=r"export ended with signal SIGKILL.* \(log: .*export\.log\)"):
        run_stage(standing, listen=kill)
    assert not standing.out.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stage_that_somebody_asked_to_stop_was_interrupted(standing, number):
    def ask(event) -> None:
        for process in stages(standing):
            process.send_signal(number)

    with pytest.raises(Interrupted, match="export was asked to stop"):
        run_stage(standing, listen=ask)
    assert not standing.out.exists()


def test_a_stage_without_space_for_a_word_is_known_by_its_exit_code(broken, monkeypatch):
    code = f"import sys; sys.exit({supervisor.DISK_FULL_EXIT})"
    monkeypatch.setattr(supervisor, "_command", lambda spec, path: [sys.executable, "-c", code])
    with pytest.raises(DiskFullError, match=r"^view: no space is left on the disk of .* free\)"):
        run_stage(broken, listen=lambda event: None)


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a file system that has room for a few lines."""
    folder = tmp_path / "full"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=9", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.usefixtures("quick_stages")
@pytest.mark.parametrize("log", ["full", "writable"])
@pytest.mark.parametrize("what", ["space", "inodes"])
def test_a_stage_that_ends_on_a_full_disk_names_it_whatever_its_log_can_take(
    export, full_disk, log, what
):
    if log == "full":
        (export.run / "logs").mkdir(parents=True)
        try:  # the device of that name, since a log may be no link
            os.mknod(export.log, stat.S_IFCHR | 0o600, os.makedev(1, 7))
            export.log.open("ab").close()
        except PermissionError:
            pytest.skip("a log on a full device needs the right to make one")
    if what == "space":
        (full_disk / "filler").write_bytes(bytes(60 * 1024))
    else:
        for number in range(7):
            (full_disk / str(number)).touch()
    spec = export.model_copy(update={"out": full_disk / "out"})
    said = "takes no more files: its inodes" if what == "inodes" else "no space is left"
    with pytest.raises(DiskFullError, match=rf"^export: .*{full_disk}") as told:
        run_stage(spec, listen=lambda event: None)
    assert said in str(told.value)


def test_of_several_processes_a_full_disk_is_known_by_a_look(broken, full_disk, monkeypatch):
    """Their launcher ends with a code of its own."""
    fill = f"open({str(full_disk / 'filler')!r}, 'wb', buffering=0).write(bytes(1 << 20))"
    code = f"import sys; {fill}; sys.exit(1)"
    monkeypatch.setattr(supervisor, "_command", lambda spec, path: [sys.executable, "-c", code])
    spec = broken.model_copy(update={"run": full_disk / "run"})
    with pytest.raises(DiskFullError, match=str(full_disk)):
        run_stage(spec, listen=lambda event: None)


def test_who_asks_twice_does_not_wait_for_the_grace_time(monkeypatch):
    leader = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)

    def again(processes, timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr(supervisor.psutil, "wait_procs", again)
    with leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        with pytest.raises(KeyboardInterrupt):
            supervisor._end(leader, "of-this-test")
        assert leader.returncode == -signal.SIGKILL


def test_a_signal_that_comes_while_the_stage_is_looked_at_ends_it_all_the_same(
    standing, monkeypatch
):
    class Interrupting(subprocess.Popen):
        """As a signal's handler that raises between the two first lines of ``poll`` leaves it."""

        asked = 0

        def poll(self):
            self.asked += 1
            if self.asked == 5:
                self._waitpid_lock.acquire()
                raise KeyboardInterrupt
            return super().poll()

    monkeypatch.setattr(supervisor.subprocess, "Popen", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        run_stage(standing, listen=lambda event: None)
    assert stages(standing) == []


@pytest.mark.parametrize("error", [Interrupted("enough"), KeyboardInterrupt()], ids=repr)
def test_no_stage_outlives_an_interruption(standing, error, monkeypatch):
    """A stage that stands still, so that it can neither heed the signal nor be done before it."""
    monkeypatch.setattr(supervisor, "_GRACE_S", 0.3)
    seen = []

    def interrupt(event) -> None:
        if event["event"] == "phase":
            seen.extend(stages(standing))
            for stage in seen:
                stage.suspend()
            raise error

    with pytest.raises(type(error)):
        run_stage(standing, listen=interrupt)
    assert seen
    assert stages(standing) == []
    assert not standing.out.exists()


PARENT = """
import os, sys, time
from pathlib import Path
from sdpo.processes.stage_specs import read_spec
from sdpo.processes.supervisor import run_stage

def listen(event):
    if event["event"] == "phase":
        print("phase", flush=True)
        time.sleep(60)

run_stage(read_spec(Path(sys.argv[1])), listen=listen)
"""


def test_a_stage_ends_with_a_parent_that_is_killed(standing, tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(standing.model_dump_json())
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(path)], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"phase\n"
        stage = stages(standing)[0]
        # In a session of its own: Ctrl-C at the terminal reaches the parent alone.
        assert os.getsid(stage.pid) == stage.pid
        stage.suspend()
        parent.kill()
        parent.wait()
        stage.resume()
        stage.wait(timeout=10)
    assert not standing.out.exists()


STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(60)
"""
FAMILY = f"""
import subprocess, sys, time
command = [sys.executable, "-c", {STUBBORN!r}]
child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_descendants_in_sessions_of_their_own_that_ignore_sigterm_are_killed(monkeypatch):
    monkeypatch.setattr(supervisor, "_GRACE_S", 0.3)
    leader = subprocess.Popen(
        [sys.executable, "-c", FAMILY],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"SDPO_STAGE": "of-this-test"},
    )
    with leader:
        assert leader.stdout is not None
        stubborn = psutil.Process(int(leader.stdout.readline()))
        supervisor._end(leader, "of-this-test")
        stubborn.wait(timeout=5)
    assert leader.poll() is not None


ORPHANS = f"""
import os, subprocess, sys, time
from pathlib import Path
from sdpo.system.locks import hold
from sdpo.system.watchdog import MARK, watched
with hold(Path(sys.argv[1]), what="it") as lock, watched("orphans-of-this-test", keep=[lock]):
    command = [sys.executable, "-c", {FAMILY!r}]
    environment = os.environ | {{MARK: "orphans-of-this-test"}}
    subprocess.Popen(command, start_new_session=True, env=environment)
    time.sleep(60)
"""


def test_where_the_parent_is_killed_its_watchdog_ends_what_nothing_else_would(tmp_path):
    """Its lock, which the orphans do not have, is not free before they have ended."""
    lock = tmp_path / "lock"
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, lock], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        stubborn = psutil.Process(int(parent.stdout.readline()))
        family = [stubborn, psutil.Process(stubborn.ppid())]
        parent.kill()
        parent.wait()
        with pytest.raises(UserError, match="its stage is still ending"), hold(lock, what="it"):
            pass
        with hold(lock, what="it", wait=True):
            states = [member.status() for member in family if member.is_running()]
    assert set(states) <= {psutil.STATUS_ZOMBIE}


@pytest.mark.usefixtures("quick_stages")
def test_each_phase_of_a_stage_is_called_by_its_name(export):
    called = []

    def call(name, function, *args):
        called.append(name)
        return function(*args)

    heard = []
    run_stage(export, listen=heard.append, call=call)
    assert called == ["export: load"]
    stages = [event["status"] for event in heard if event["event"] == "stage"]
    assert stages == ["started", "completed"]


def test_a_stage_that_is_over_before_its_last_phase_was_looked_at_has_its_result(
    export, monkeypatch
):
    watch = supervisor._Ending.watch

    def late(self, process):
        watch(self, process)
        process.wait()

    monkeypatch.setattr(supervisor._Ending, "watch", late)
    assert run_stage(export, listen=lambda event: None)["dtype"] == "bfloat16"


def test_the_stage_gets_the_threads_and_devices_of_its_launch(broken):
    environment = supervisor.stage_environment(broken)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    on_gpu = broken.model_copy(update={"launch": LaunchConfig(device="cuda", threads=4)})
    assert supervisor.stage_environment(on_gpu)["OMP_NUM_THREADS"] == "4"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    assert supervisor.stage_environment(on_gpu).get("CUDA_VISIBLE_DEVICES") == visible


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2", "deepspeed_zero3"])
def test_weights_that_are_gathered_for_a_blocks_time_have_pages_of_their_own(
    broken, strategy, monkeypatch
):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    launch = LaunchConfig(device="cpu", threads=1, strategy=strategy, processes=2)
    environment = supervisor.stage_environment(broken.model_copy(update={"launch": launch}))
    gathers = strategy in ("fsdp2", "deepspeed_zero3")
    assert environment.get("MALLOC_MMAP_THRESHOLD_") == ("1048576" if gathers else None)


@pytest.mark.parametrize(("rank", "device"), [(0, "cpu"), (4, "cpu"), (4, "cuda")])
def test_what_adapters_add_to_an_answer_on_a_cpu_has_pages_of_its_own(
    tmp_path, rank, device, monkeypatch
):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    run = prepare_run(tmp_path, pairs={0: 2, 1: 4})
    launch = LaunchConfig(device=device, threads=1, strategy="single")
    spec = run.spec(1, TrainingConfig(lora_r=rank), launch=launch)
    found = supervisor.stage_environment(spec).get("MALLOC_MMAP_THRESHOLD_")
    assert found == ("1048576" if rank and device == "cpu" else None)


@pytest.mark.parametrize("own", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_memory_of_a_gpu_comes_in_segments_that_grow_unless_the_user_says_otherwise(
    broken, monkeypatch, own
):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv(own, "max_split_size_mb:64")
    on_gpu = broken.model_copy(update={"launch": LaunchConfig(device="cuda", threads=1)})
    environment = supervisor.stage_environment(on_gpu)
    said = {name: environment[name] for name in names if name in environment}
    wanted = {own: "max_split_size_mb:64"} if own else {names[0]: "expandable_segments:True"}
    assert said == wanted
    on_cpu = supervisor.stage_environment(broken)
    assert {name for name in names if name in on_cpu} == ({own} if own else set())


def test_no_stage_has_settings_of_the_server_or_of_accelerate_or_modules_of_the_current_folder(
    broken, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # ZeRO would be DDP
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "sdpo:secret")
    monkeypatch.setenv("PREFECT__CONTROL_TOKEN", "secret too")
    monkeypatch.setenv("HF_TOKEN", "needed")
    environment = supervisor.stage_environment(broken)
    assert not any(name.startswith(("PREFECT_", "ACCELERATE_")) for name in environment)
    assert environment["HF_TOKEN"] == "needed"
    assert environment["PYTHONSAFEPATH"] == "1"


def test_a_stage_of_a_checkout_that_was_not_installed_finds_its_modules(broken, tmp_path):
    python = without_the_project(tmp_path / "bare")
    program = (
        "import sys; from pathlib import Path; from sdpo.processes.supervisor import run_stage; "
        "from sdpo.processes.stage_specs import read_spec; "
        "run_stage(read_spec(Path(sys.argv[1])), listen=print)"
    )
    spec = tmp_path / "spec.json"
    spec.write_text(broken.model_dump_json())
    root = Path(supervisor.__file__).parents[2]

    def said(*arguments: str) -> str:
        ended = subprocess.run(
            [python, *arguments],
            check=False,
            cwd=root,
            env=os.environ | {"PYTHONPATH": ""},
            capture_output=True,
            text=True,
        )
        return ended.stderr

    assert "No module named 'sdpo'" in said("-P", "-c", "import sdpo")
    assert "File is too small: 9" in said("-c", program, str(spec))  # said of the stage's work


def test_several_processes_are_launched_for_training_alone(broken):
    several = LaunchConfig(device="cpu", processes=2, strategy="ddp")
    command = supervisor._command(broken.model_copy(update={"launch": several}), broken.run)
    assert command == [sys.executable, "-m", "sdpo.stages", str(broken.run)]
