"""Stages on nodes of SLURM: in jobs of their own, and within an allocation, by Debian's daemons."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from bench import Bench, Values
from slurm_cluster import Cluster, slurm_cluster

from sdpo.chain.run_chain import run_chain
from sdpo.config import LaunchConfig
from sdpo.config.load import make_config
from sdpo.config.nodes import Address, SlurmConfig
from sdpo.processes.nodes.outlook import job_script, srun_command
from sdpo.store.run_folder import RunFolder
from sdpo.store.run_status import read_word

ROOT = Path(__file__).parents[4]
TWO = {"processes": 2, "strategy": "ddp", "device": "cpu", "threads": 1}
ON_NODES = {"launch": {**TWO, "nodes": 2, "launcher": "slurm"}}
LONG = {"training": {"epochs": 20, "checkpoint_every": 5}}


def test_the_job_of_a_stage_asks_for_what_the_recipe_says(tmp_path: Path) -> None:
    slurm = SlurmConfig(partition="gpu", account="lab", time="4:00:00", extra=["--qos=high"])
    launch = LaunchConfig(
        device="cuda", processes=16, nodes=2, threads=4, launcher="slurm", slurm=slurm
    )
    script = job_script(
        launch, nodes=2, name="sdpo-x", folder=tmp_path, rendezvous=Address("login", 1234)
    )
    asked = {line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line}
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8"} <= asked
    assert {"--cpus-per-task=32", "--partition=gpu", "--account=lab", "--qos=high"} <= asked
    assert {"--time=4:00:00", "--signal=USR1@120", "--no-requeue"} <= asked
    assert "--rendezvous login:1234" in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
    assert checked.returncode == 0
    on_cpu = launch.model_copy(update={"device": "cpu", "slurm": SlurmConfig()})
    plain = job_script(on_cpu, nodes=1, name="x", folder=tmp_path, rendezvous=Address("a", 1))
    assert not [word for word in ("gpus", "partition", "time=") if word in plain]


def test_within_an_allocation_a_member_gets_the_cores_of_its_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    command = srun_command(2, Address("node1", 1234))
    assert command[0] == "srun"
    assert {"--nodes=2", "--ntasks=2", "--cpus-per-task=8"} <= set(command)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    assert not [word for word in srun_command(2, Address("node1", 1)) if "cpus-per" in word]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of SLURM."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as running:
        yield running


@contextmanager
def started(cluster: Cluster, bench: Bench, recipe: str) -> Iterator["subprocess.Popen[str]"]:
    """`sdpo run` outside any allocation, which is killed with the block."""
    environment = os.environ | cluster.variables | {"PYTHONPATH": str(ROOT)}
    with (bench.folder / "run.out").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.app", "run", recipe],
            stdout=log,
            stderr=log,
            text=True,
            env=environment,
            cwd=bench.folder,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def said(bench: Bench) -> str:
    """What the run has said, here or in a job."""
    logs = (*bench.folder.glob("run.out"), *bench.folder.glob("*.log"))
    return "\n".join(path.read_text(encoding="utf-8") for path in logs)


def batch_script(recipe: str, bench: Bench) -> str:
    """What `sdpo slurm` prints for a recipe."""
    command = [sys.executable, "-m", "flows.cli.app", "slurm", recipe]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=bench.folder
    )
    return done.stdout


def wait_for(what: Callable[[], bool], bench: Bench, seconds: float = 120) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, said(bench)
        time.sleep(0.2)


def jobs(cluster: Cluster) -> list[str]:
    """Numbers of the jobs that wait or run."""
    return cluster.call("squeue", "--noheader", "--format=%A").split()


def has_state(bench: Bench) -> bool:
    """Whether a step has saved a resume state."""
    return bool(list(bench.runs.glob("tiny/step-*/resume/*/state.json")))


def left(bench: Bench) -> list[psutil.Process]:
    """Processes that have to do with the run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(bench.folder) in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def here(changes: Values, bench: Bench) -> RunFolder:
    """The run of processes on this machine."""
    return RunFolder(run_chain(make_config(bench.values(changes))).run)


def models(run: RunFolder) -> list[str]:
    """Digests of M_1 and M_2."""
    return [run.step_record(f"step-{number}").model for number in (1, 2)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stages_wait_and_run_as_jobs_and_go_on_in_the_next_when_time_is_up(
    cluster: Cluster, bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Time is up as SLURM says it: by the signal to a job's steps."""
    run = RunFolder(bench.runs / "tiny")

    def says(text: str) -> bool:
        word = read_word(run) if run.path.is_dir() else None
        return word is not None and word.state == "waiting" and text in word.waits_for

    cluster.call("scontrol", "update", "PartitionName=all", "State=DOWN")
    with started(cluster, bench, bench.write({**LONG, **ON_NODES})) as process:
        wait_for(lambda: says("is PENDING (PartitionDown)"), bench)
        cluster.call("scontrol", "update", "PartitionName=all", "State=UP")
        wait_for(lambda: has_state(bench), bench)
        (job,) = jobs(cluster)
        cluster.call("scancel", "--signal=USR1", job)
        wait_for(lambda: jobs(cluster) not in ([], [job]), bench)
        wait_for(lambda: process.poll() is not None, bench, 400)
        shown = (bench.folder / "run.out").read_text(encoding="utf-8")
        assert process.returncode == 0, shown
    assert "the time of the job of" in shown
    assert "another one goes on" in shown
    wait_for(lambda: jobs(cluster) == [], bench, 15)
    there = Bench(tmp_path_factory.mktemp("plain"), bench.recipe)
    assert models(run) == models(here({**LONG, "launch": TWO}, there))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_that_is_cancelled_leaves_no_job_and_no_process(
    cluster: Cluster, bench: Bench
) -> None:
    with started(cluster, bench, bench.write({**LONG, **ON_NODES})) as process:
        wait_for(lambda: has_state(bench), bench)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        wait_for(lambda: process.poll() is not None, bench, 35)
        assert process.returncode == 130
        wait_for(lambda: not left(bench) and not jobs(cluster), bench, 35)
        took = time.monotonic() - start
    assert took < 35
    print(f"nothing was left after {took:.1f} s")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_that_is_cancelled_ends_the_stage_and_the_run_can_be_resumed(
    cluster: Cluster, bench: Bench
) -> None:
    with started(cluster, bench, bench.write({**LONG, **ON_NODES})) as process:
        wait_for(lambda: has_state(bench), bench)
        (job,) = jobs(cluster)
        cluster.call("scancel", job)
        wait_for(lambda: process.poll() is not None, bench, 60)
        assert process.returncode == 1
    shown = (bench.folder / "run.out").read_text(encoding="utf-8")
    assert "node node" in shown
    assert "is lost" in shown
    assert "sdpo resume tiny" in shown


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_within_an_allocation_each_stage_is_an_srun_over_its_nodes(
    cluster: Cluster, bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = batch_script(bench.write(ON_NODES), bench)
    assert "#SBATCH --nodes=2" in script
    job = cluster.submit(script, folder=bench.folder)
    state = cluster.wait_for(job, "COMPLETED", "FAILED", seconds=400)
    assert state == "COMPLETED", said(bench)
    run = RunFolder(bench.runs / "tiny")
    there = Bench(tmp_path_factory.mktemp("plain"), bench.recipe)
    assert models(run) == models(here({"launch": TWO}, there))
    nodes = (run.path / "logs" / "step-1.log").read_text(encoding="utf-8")
    assert "node node1: node 0 of 2" in nodes
    assert "node node2: node 1 of 2" in nodes


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_of_a_whole_run_that_is_cancelled_leaves_nothing_on_any_of_its_nodes(
    cluster: Cluster, bench: Bench
) -> None:
    script = batch_script(bench.write({**LONG, **ON_NODES}), bench)
    job = cluster.submit(script, folder=bench.folder)
    wait_for(lambda: has_state(bench), bench)
    cluster.call("scancel", job)
    start = time.monotonic()
    wait_for(lambda: not left(bench), bench, 35)
    print(f"nothing was left after {time.monotonic() - start:.1f} s")
    assert cluster.wait_for(job, "CANCELLED", seconds=10) == "CANCELLED"
    assert read_word(RunFolder(bench.runs / "tiny")).state == "interrupted"
