"""A step on two nodes, each a network of its own, is the step of one; and what goes wrong there."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench import Bench
from safetensors.torch import load_file
from second_node import ROOT, SecondNode, free_port, second_node

from flows.commands.between_nodes import sent_bytes
from sdpo.chain.run_chain import run_chain
from sdpo.config import EvaluationConfig, LaunchConfig, TrainingConfig
from sdpo.config.load import make_config
from sdpo.config.running import LaunchStrategy
from sdpo.errors import Fault, Interrupted
from sdpo.events import Event, StateEvent, WarningEvent
from sdpo.processes.nodes.rendezvous import listening
from sdpo.processes.supervisor import run_stage

from ...training_helpers.runs import PreparedRun, prepare_run, stage_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PAIRS = {0: 5, 1: 19, 2: 6}
TRAINING = TrainingConfig(
    beta=0.2, learning_rate=1e-3, batch_size=6, seed=3, precision="fp32", micro_batch_tokens=300
)
LONG = TRAINING.model_copy(update={"epochs": 60, "checkpoint_every": 5})


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecondNode]:
    """The other node."""
    with second_node(tmp_path_factory.mktemp("node")) as there:
        yield there


@pytest.fixture
def port() -> int:
    """A port that is free."""
    return free_port()


def run_step(
    run: PreparedRun,
    launch: LaunchConfig,
    training: TrainingConfig = TRAINING,
    heed: Callable[[Event], None] = lambda event: None,
    *,
    every: int = 2,
) -> list[Event]:
    """Step 1; returns the events it sent."""
    spec = run.spec(
        1,
        training,
        measure_input=True,
        measure_output=True,
        evaluation=EvaluationConfig(every=every),
        launch=launch,
    )
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        heed(event)

    with listening(launch) as door:
        run_stage(spec, listen=listen, rendezvous=door)
    return events


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> PreparedRun:
    """The step of one process."""
    run = prepare_run(tmp_path_factory.mktemp("single"), pairs=PAIRS)
    run_step(run, LaunchConfig(device="cpu", strategy="single", threads=1))
    return run


STRATEGIES: list[LaunchStrategy] = ["ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_nodes_give_the_loss_curve_of_one(
    strategy: LaunchStrategy, node: SecondNode, port: int, tmp_path: Path, single: PreparedRun
) -> None:
    double = prepare_run(tmp_path, pairs=PAIRS)
    launch = node.launch(port, strategy=strategy)
    with node.joined(port) as join:
        run_step(double, launch)
        assert join.wait(30) == 0, "with the run nobody waits for nodes any more"
    curve, curve_of_two = single.metrics(1), double.metrics(1)
    assert len([line for line in curve if "loss" in line]) == 4
    for line, other in zip(curve, curve_of_two, strict=True):
        assert set(line) == set(other)
        for name in set(line) - {"rewards/accuracies", "eval_rewards/accuracies"}:
            assert other[name] == pytest.approx(line[name], rel=1e-4, abs=1e-4), name
    record = double.record(1)
    assert record["environment"]["processes"] == 2
    assert record["environment"]["strategy"] == strategy
    assert double.folder.damage(record) == []
    logs = double.folder.path / "logs"
    assert not list(logs.glob("*.nodes.json")), "what proves a node's folder does not stay"
    assert "node 1 of 2" in node.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_node_sends_in_a_step_what_check_says_of_it(
    strategy: LaunchStrategy, node: SecondNode, port: int, tmp_path: Path
) -> None:
    """Counted at its network interface: what a longer run sends more than a short one."""
    sent, steps = list[int](), list[int]()
    at_once = TRAINING.model_copy(update={"batch_size": 2, "micro_batch_tokens": 1000})
    for epochs in (1, 3):
        run = prepare_run(tmp_path / str(epochs), pairs=PAIRS)
        training = at_once.model_copy(update={"epochs": epochs})
        before = node.sent_bytes()
        with node.joined(port) as join:
            run_step(run, node.launch(port, strategy=strategy), training, every=1000)
            assert join.wait(30) == 0
        sent.append(node.sent_bytes() - before)
        steps.append(run.record(1)["optimizer_steps"])
    assert steps == [10, 30]
    measured = (sent[1] - sent[0]) / (steps[1] - steps[0])
    weights = load_file(run.model / "model.safetensors")
    size = sum(tensor.numel() for tensor in weights.values())
    words = weights["model.embed_tokens.weight"].numel()  # the head is the same
    told = sent_bytes(
        strategy, nodes=2, parameters=size, trained=size, width=4, words=words, gloo=True
    )
    print(f"{strategy}: {measured:.0f} bytes sent in a step, {told} told, {measured / told:.3f}")
    assert measured == pytest.approx(told, rel=0.02)


def after_a_state(do: Callable[[], None]) -> Callable[[Event], None]:
    """Do something once the first resume state is saved."""
    done: list[int] = []

    def heed(event: Event) -> None:
        if isinstance(event, StateEvent) and event.event == "checkpoint" and not done:
            done.append(event.optimizer_step)
            do()

    return heed


def wait_until_empty(node: SecondNode, seconds: float) -> float:
    """Wait until nothing runs on the node, and return how long that took."""
    start = time.monotonic()
    while node.processes():
        assert time.monotonic() < start + seconds, node.processes()
        time.sleep(0.1)
    return time.monotonic() - start


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_lost_node_ends_the_stage_by_name_and_the_step_goes_on_from_its_state(
    how: str, node: SecondNode, port: int, tmp_path: Path
) -> None:
    run, lost_s = prepare_run(tmp_path, pairs=PAIRS), list[float]()

    def lose() -> None:
        lost_s.append(time.monotonic())
        if how == "cut off":
            node.cut()
        else:
            for process in node.processes():
                process.kill()

    try:
        with node.joined(port):
            with pytest.raises(Fault, match=f"node {node.name} .* is lost"):
                run_step(run, node.launch(port), LONG, after_a_state(lose))
            took = time.monotonic() - lost_s[0]
            assert took < 60
            assert not [p for p in stage_processes(run.spec(1, LONG)) if p not in node.processes()]
            wait_until_empty(node, 35)
    finally:
        node.mend()
    short = LONG.model_copy(update={"epochs": 20})
    with node.joined(port):
        events = run_step(run, node.launch(port), short)
    goes_on = [e for e in events if isinstance(e, StateEvent) and e.event == "resume"]
    assert goes_on, "the step starts again"
    print(f"{how}: the stage ended {took:.1f} s after the loss")


def test_a_stage_that_is_cancelled_leaves_nothing_on_any_node(
    node: SecondNode, port: int, tmp_path: Path
) -> None:
    run = prepare_run(tmp_path, pairs=PAIRS)

    def stop() -> None:
        raise Interrupted("enough")

    with node.joined(port) as join:
        with pytest.raises(Interrupted):
            run_step(run, node.launch(port), LONG, after_a_state(stop))
        took = wait_until_empty(node, 35)
        assert join.wait(1) == 0
    assert not stage_processes(run.spec(1, LONG))
    print(f"nothing was left after {took:.1f} s")


BY_LAUNCHERS = {
    "a JobSet": {"JOB_COMPLETION_INDEX": "1", "JOBSET_NAME": "sdpo-nodes", "NODE_RANK": "1"},
    "srun": {
        **{"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"},
        **{"SLURM_NTASKS": "2", "PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "9"},
    },
    "mpirun": {
        **{"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
        **{"OMPI_COMM_WORLD_LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
    },
    "Kubeflow": {"PET_NNODES": "2", "PET_NODE_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"},
}


@pytest.mark.parametrize("variables", BY_LAUNCHERS.values(), ids=BY_LAUNCHERS)
def test_a_node_finds_the_run_by_a_launcher_s_variables_and_its_processes_have_none_of_them(
    variables: dict[str, str], node: SecondNode, port: int, tmp_path: Path
) -> None:
    run = prepare_run(tmp_path, pairs=PAIRS)
    prefix = "PET_" if "PET_NNODES" in variables else ""
    where = {f"{prefix}MASTER_ADDR": node.here, f"{prefix}MASTER_PORT": str(port)}
    with node.joined(port, variables={**variables, **where}, launcher=()) as join:
        run_step(run, node.launch(port))
        assert join.wait(30) == 0
    assert run.record(1)["environment"]["processes"] == 2


def torchrun(node: SecondNode, port: int, *, rank: int, processes: int) -> list[str]:
    """The options of Python that have torchrun start a module on a node."""
    return [
        *("-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"),
        *(f"--nproc-per-node={processes}", f"--master-addr={node.here}", f"--master-port={port}"),
    ]


def test_torchrun_starts_a_run_and_its_node_which_ends_with_it(
    node: SecondNode, port: int, bench: Bench
) -> None:
    """What two nodes made counts on one and back."""
    two = {"processes": 2, "strategy": "ddp", "device": "cpu", "threads": 1}
    recipe = bench.write({"launch": {**two, "nodes": 2, "launcher": "torchrun"}})
    command = [*torchrun(node, port, rank=0, processes=1), "-m", "flows.cli.app", "run", recipe]
    started = [sys.executable, *command]
    before = len(node.log.read_text(encoding="utf-8")) if node.log.exists() else 0
    # Who has it start a process for each device of a node has one node all the same.
    with node.joined(port, launcher=torchrun(node, port, rank=1, processes=2)) as join:
        ran = subprocess.run(
            started, cwd=bench.folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert join.wait(60) == 0, node.log.read_text(encoding="utf-8")
    log = node.log.read_text(encoding="utf-8")[before:]
    assert "process 1 that was started on this node: the first one joins for all of it" in log
    assert log.count("the run has ended") == 1
    on_one = run_chain(make_config(bench.values({"launch": two})))
    assert on_one.executed == (), "the nodes of a run change nothing of it"


def other_code(folder: Path, node: SecondNode) -> dict[str, object]:
    """The project with another line of code."""
    for name in ("sdpo", "flows", "partitions"):
        shutil.copytree(ROOT / name, folder / "other" / name)
    with (folder / "other/sdpo/errors.py").open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    return {"root": folder / "other"}


def other_torch(folder: Path, node: SecondNode) -> dict[str, object]:
    """An environment that says it has another torch."""
    info = folder / "packages" / "torch-2.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.1.0\n")
    return {"variables": {"PYTHONPATH": f"{ROOT}:{folder / 'packages'}"}}


def no_folder(folder: Path, node: SecondNode) -> dict[str, object]:
    """A node that does not share the run's folder."""
    return {"hidden": folder / "run"}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (other_code, r"other versions: sdpo .* there, .* here"),
        (other_torch, r"other versions: torch 2\.1\.0 there"),
        (no_folder, r"does not see .*nodes\.json"),
    ],
)
def test_a_node_that_cannot_take_part_is_refused_by_name_before_training(
    make, why: str, node: SecondNode, port: int, tmp_path: Path
) -> None:
    run = prepare_run(tmp_path / "run", pairs=PAIRS)
    told: list[str] = []

    def heed(event: Event) -> None:
        if isinstance(event, WarningEvent):
            told.append(event.message)
            raise Interrupted("seen")

    with node.joined(port, **make(tmp_path, node)) as join:
        with pytest.raises(Interrupted):
            run_step(run, node.launch(port), heed=heed)
        assert join.wait(35) == 2
    assert told[0].startswith(f"node {node.name} ")
    assert re.search(why, told[0]), told
    assert not list(run.folder.step(1).glob("metrics.jsonl")), "nothing was trained"
    assert "refused: " in node.log.read_text(encoding="utf-8")
