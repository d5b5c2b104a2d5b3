"""Twenty optimizer steps, clipped, are those of one process, under each strategy (slow).

FSDP2's are in `test_fsdp2.py`, which each test run has.
"""

import pytest
from forked_ranks import forked_ranks

from sdpo.config import EvaluationConfig, LaunchConfig, TrainingConfig
from sdpo.processes.supervisor import run_stage

from ..training_helpers.runs import LAUNCH, TWENTY_STEPS, PreparedRun, prepare_run, skip_without

SETTINGS = {
    "all weights": TWENTY_STEPS,
    "adapters": TWENTY_STEPS.model_copy(update={"lora_r": 4, "learning_rate": 2e-3}),
}


def taken(folder, training: TrainingConfig, launch: LaunchConfig) -> PreparedRun:
    run = prepare_run(folder, pairs={0: 5, 1: 25, 2: 4})
    spec = run.spec(1, training, launch=launch, evaluation=EvaluationConfig(every=4))
    with forked_ranks():
        run_stage(spec, listen=lambda event: None)
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, PreparedRun]:
    return {
        name: taken(tmp_path_factory.mktemp("alone"), training, LAUNCH)
        for name, training in SETTINGS.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("trains", SETTINGS)
@pytest.mark.parametrize(
    "strategy", ["ddp", "fsdp2", "deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3"]
)
def test_twenty_steps_of_two_processes_are_those_of_one(alone, tmp_path, strategy, trains):
    skip_without(strategy)
    launch = LaunchConfig(processes=2, strategy=strategy, device="cpu", threads=1)
    run = taken(tmp_path, SETTINGS[trains], launch)
    curve, expected = run.metrics(1), alone[trains].metrics(1)
    assert len([line for line in expected if "loss" in line]) == 20
    for line, wanted in zip(curve, expected, strict=True):
        assert set(line) == set(wanted)
        for name in {"loss", "eval_loss", "grad_norm", "rewards/margins"} & set(wanted):
            assert line[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-4), name
    norms = [line["grad_norm"] for line in expected if "grad_norm" in line]
    assert max(norms) > TWENTY_STEPS.max_grad_norm, "gradients are clipped"
