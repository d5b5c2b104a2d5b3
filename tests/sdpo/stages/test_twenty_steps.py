"""Twenty optimizer steps, clipped, are those of one process, under each strategy and by whatever
number of processes they are ended (most are slow).

What else FSDP2's shares have to be is in `test_fsdp2.py`.
"""

from collections.abc import Callable
from functools import cache

import pytest
from forked_ranks import forked_ranks

from sdpo.config import EvaluationConfig, LaunchConfig, TrainingConfig
from sdpo.events import Event, NoteEvent
from sdpo.processes.supervisor import run_stage

from ..training_helpers.runs import (
    LAUNCH,
    TWENTY_STEPS,
    PreparedRun,
    check_curve,
    prepare_run,
    skip_without,
    slow,
    stop_step,
)

SETTINGS = {
    "all weights": TWENTY_STEPS,
    "adapters": TWENTY_STEPS.model_copy(update={"lora_r": 4, "learning_rate": 2e-3}),
}


PAIRS = {0: 5, 1: 25, 2: 4}


def taken(folder, training: TrainingConfig, launch: LaunchConfig) -> PreparedRun:
    run = prepare_run(folder, pairs=PAIRS)
    with forked_ranks():
        end_step(run, training, launch)
    return run


def end_step(run: PreparedRun, training: TrainingConfig, launch: LaunchConfig) -> list[str]:
    """Run step 1, from its state if it has one, and return what was noted."""
    said: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, NoteEvent):
            said.append(event.message)

    spec = run.spec(1, training, launch=launch, evaluation=EvaluationConfig(every=2))
    run_stage(spec, listen=listen)
    return said


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[str], PreparedRun]:
    """``alone(trains)``: the twenty steps of one process, made once."""

    @cache
    def make(trains: str) -> PreparedRun:
        return taken(tmp_path_factory.mktemp("alone"), SETTINGS[trains], LAUNCH)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("trains", SETTINGS)
@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"]
)
def test_twenty_steps_of_two_processes_are_those_of_one(alone, tmp_path, strategy, trains):
    skip_without(strategy)
    launch = LaunchConfig(processes=2, strategy=strategy, device="cpu", threads=1)
    run = taken(tmp_path, SETTINGS[trains], launch)
    check_curve(run, alone(trains))
    norms = [line["grad_norm"] for line in run.metrics(1) if "grad_norm" in line]
    assert max(norms) > TWENTY_STEPS.max_grad_norm, "gradients are clipped"


@pytest.mark.parametrize(
    ("strategy", "begun_by", "ended_by", "trains"),
    [
        ("ddp", 2, 3, "all weights"),
        slow("ddp", 2, 1, "all weights"),
        ("fsdp2", 2, 3, "all weights"),
        slow("fsdp2", 2, 4, "all weights"),
        slow("ddp", 2, 3, "adapters"),
        slow("deepspeed_zero1", 2, 3, "all weights"),
        slow("deepspeed_zero1", 3, 2, "adapters"),
        slow("deepspeed_zero2", 3, 2, "all weights"),
        slow("deepspeed_zero2", 2, 4, "adapters"),
        slow("deepspeed_zero3", 2, 3, "all weights"),
        slow("deepspeed_zero3", 4, 2, "all weights"),
        slow("deepspeed_zero3", 3, 2, "adapters"),
    ],
)
def test_a_step_is_ended_by_another_number_of_processes(
    alone, tmp_path, strategy, begun_by, ended_by, trains
):
    skip_without(strategy)
    launch = LaunchConfig(processes=begun_by, strategy=strategy, device="cpu", threads=1)
    run = prepare_run(tmp_path, pairs=PAIRS)
    with forked_ranks():
        saved = stop_step(run, killed=False, launch=launch, training=SETTINGS[trains])
        launch = launch.model_copy(update={"processes": ended_by})
        said = end_step(run, SETTINGS[trains], launch)
    wanted = f"step-1 goes on with {ended_by} processes from a state of {begun_by}: the same"
    assert [message for message in said if message.startswith(wanted)], said
    assert run.record(1)["resumed_at"] == [saved]
    assert run.record(1)["environment"]["processes"] == ended_by
    check_curve(run, alone(trains))
