"""The batch script is one that SLURM runs as it is, over as many jobs as it takes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bench import Bench
from command_line import Sdpo
from slurm_cluster import Cluster, slurm_cluster

from flows.commands.slurm import Job, batch_script
from sdpo.config import RunConfig
from sdpo.config.load import make_config
from sdpo.errors import ConfigError
from sdpo.store.run_folder import RunFolder

LONG = {"training": {"epochs": 20, "checkpoint_every": 5}}
ROOT = Path(__file__).parents[3]


def config(**launch: object) -> RunConfig:
    return make_config(
        {
            "name": "tiny",
            "model": {"name_or_path": "x"},
            "data": {"sources": [{"path": "x"}]},
            "launch": launch,
        }
    )


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]


def test_it_asks_for_what_the_recipe_needs_and_what_is_given(tmp_path: Path) -> None:
    job = Job(partition="gpu", account="lab", time="1-12", extra=["--qos=high"])
    script = batch_script(config(processes=4), ["my recipe.yaml"], job, folder=tmp_path / "a b")
    asked = options(script)
    assert {"--nodes=1", "--gpus-per-node=4", "--partition=gpu", "--account=lab"} <= set(asked)
    assert {"--time=1-12", "--qos=high", "--requeue", "--signal=B:USR1@120"} <= set(asked)
    assert "'my recipe.yaml'" in script
    assert f"cd '{tmp_path}/a b'" in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
    assert checked.returncode == 0
    on_cpu = options(batch_script(config(device="cpu"), ["x"], Job(), folder=tmp_path))
    assert not [option for option in on_cpu if "gpus" in option or "partition" in option]
    two = options(batch_script(config(), ["x"], Job(gpus=2), folder=tmp_path))
    assert "--gpus-per-node=2" in two


@pytest.mark.parametrize(
    "job",
    [
        Job(partition="a b"),
        Job(account="x\n#SBATCH --uid=0"),
        Job(time="soon"),
        Job(time="1:00\nrm -r x"),
        Job(extra=["rm -r x"]),
        Job(extra=["--qos=x\nrm -r x"]),
    ],
)
def test_what_would_be_another_line_of_the_script_is_refused(job: Job, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        batch_script(config(), ["x"], job, folder=tmp_path)


def test_the_command_prints_the_script_and_refuses_a_recipe_that_cannot_be(
    bench: Bench, sdpo: Sdpo
) -> None:
    recipe = bench.write()
    done = sdpo("slurm", recipe, "--set", "training.beta=0.2", "--name", "other", "--time", "10")
    assert done.code == 0
    assert done.out.startswith("#!/bin/bash\n#SBATCH --job-name=sdpo-other\n")
    assert f"run {recipe} --set training.beta=0.2 --name other &" in done.out
    assert sdpo("slurm", recipe, "--set", "training.beta=-1").code == 2
    assert sdpo("slurm", recipe, "--time", "soon").code == 2


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """SLURM's daemons."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def submitted(cluster: Cluster, bench: Bench) -> str:
    """The number of a job that runs the recipe, by the script as it is printed."""
    command = [sys.executable, "-m", "flows.cli.app", "slurm", bench.write(LONG)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment, cwd=bench.folder
    ).stdout
    return cluster.submit(script, folder=bench.folder)


def wait_for_state(bench: Bench, seconds: float = 120) -> None:
    """Wait until a step has saved a resume state."""
    end = time.monotonic() + seconds
    while not list(bench.runs.glob("tiny/step-*/resume/*/state.json")):
        assert time.monotonic() < end, list(bench.folder.rglob("*.log"))
        time.sleep(0.05)


def of_the_run(bench: Bench) -> list[int]:
    """Processes that have to do with the run."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if any(str(bench.folder) in word for word in process.info["cmdline"] or ()):
            found.append(process.info["pid"])
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_whose_time_is_up_saves_and_goes_on_in_the_next(
    cluster: Cluster, bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As SLURM does before the end: the signal to the batch shell alone."""
    job = submitted(cluster, bench)
    wait_for_state(bench)
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    assert cluster.wait_for(job, "PENDING", "COMPLETED", seconds=60) == "PENDING"
    cluster.wait_for(job, "COMPLETED", seconds=300)
    log = next(bench.folder.glob("*.log")).read_text(encoding="utf-8")
    assert "asked to stop" in log or "terminated" in log or "interrupted" in log
    assert "goes on after optimizer step" in log
    plain = Bench(tmp_path_factory.mktemp("plain"), bench.recipe).run(LONG).run
    run = RunFolder(bench.runs / "tiny")
    assert [run.step_record(f"step-{n}").model for n in (1, 2)] == [
        plain.step_record(f"step-{n}").model for n in (1, 2)
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_that_is_cancelled_leaves_nothing_and_does_not_come_back(
    cluster: Cluster, bench: Bench
) -> None:
    job = submitted(cluster, bench)
    wait_for_state(bench)
    cluster.call("scancel", job)
    end = time.monotonic() + 35
    while of_the_run(bench):
        assert time.monotonic() < end, "something is left 35 s after scancel"
        time.sleep(0.2)
    time.sleep(2)
    assert cluster.state(job) == "CANCELLED"
