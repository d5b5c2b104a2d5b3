"""Nodes that nobody starts, or that cannot share the processes, are refused from the recipe."""

import pytest

from sdpo.config import LaunchConfig, settings_without_effect
from sdpo.config.load import make_config
from sdpo.errors import ConfigError
from sdpo.inputs.devices import resolve_launch, resolve_precision

RECIPE = {"name": "x", "model": {"name_or_path": "x"}, "data": {"sources": [{"path": "x"}]}}


@pytest.mark.parametrize(
    ("launch", "why"),
    [
        ({"nodes": 2, "processes": 2}, r"launch\.nodes is 2 with launch\.launcher `local`"),
        (
            {"nodes": 2, "processes": 3, "launcher": "slurm"},
            r"cannot be shared evenly by launch\.nodes \(2\): set launch\.processes to 4",
        ),
        ({"nodes": 4, "launcher": "torchrun"}, r"set launch\.processes to 4"),
        ({"launcher": "torchrun", "rendezvous": "node-a"}, r"`node-a` is no HOST:PORT"),
        ({"launcher": "torchrun", "rendezvous": "a:70000"}, r"is no HOST:PORT"),
        (
            {"launcher": "slurm", "slurm": {"time": "soon"}},
            r"launch\.slurm\.time 'soon' is no time",
        ),
        (
            {"launcher": "slurm", "slurm": {"extra": ["x\n#SBATCH --uid=0"]}},
            r"launch\.slurm\.extra .* is no option of sbatch",
        ),
    ],
)
def test_nodes_that_cannot_be_are_refused(launch: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make_config({**RECIPE, "launch": launch})


def test_settings_of_another_launcher_warn() -> None:
    config = make_config(
        {**RECIPE, "launch": {"rendezvous": "node-a:1", "slurm": {"partition": "gpu"}}}
    )
    assert settings_without_effect(config) == [
        "launch.rendezvous has no effect: launch.launcher is `local`",
        "launch.slurm has no effect: launch.launcher is `local`",
    ]


def test_a_machine_without_a_gpu_may_have_nodes_that_train_on_theirs() -> None:
    launch = LaunchConfig(device="cuda", processes=16, nodes=2, launcher="slurm", threads=1)
    resolved = resolve_launch(launch)
    assert (resolved.device, resolved.strategy, resolved.per_node) == ("cuda", "ddp", 8)
    assert resolve_precision("bf16", resolved) == "bf16"
    with pytest.raises(ConfigError, match=r"no GPU that says .* set bf16 or fp32"):
        resolve_precision("auto", resolved)


def test_a_stage_of_one_process_has_one_node_whatever_the_steps_have() -> None:
    launch = LaunchConfig(device="cuda", processes=16, nodes=2, launcher="slurm").alone
    assert (launch.processes, launch.nodes, launch.per_node, launch.strategy) == (1, 1, 1, "single")


def test_what_a_machine_without_a_gpu_cannot_say_of_its_nodes_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"says nothing of the nodes: set launch\.device"):
        resolve_launch(LaunchConfig(launcher="torchrun"))
