"""A step with adapters that was stopped goes on to the bit, under every strategy and precision.

It is a run's second step: with `merge` a fresh adapter over merged weights, with `continue` the one
that was handed on. Adapters drop out, so that each process's generator of random numbers counts.
"""

import shutil
from pathlib import Path

import pytest
from forked_ranks import forked_ranks

from sdpo.config import EvaluationConfig, LaunchConfig, ModelConfig, TrainingConfig
from sdpo.identity.model_digest import model_digest
from sdpo.processes.supervisor import run_stage
from sdpo.store.resume_states import states_folder

from ..training_helpers.runs import (
    FEW_STEPS,
    LAUNCH,
    PreparedRun,
    prepare_run,
    skip_without,
    stop_step,
)

SLOW = pytest.mark.slow
PAIRS = {0: 3, 1: 5, 2: 19}
TRAINING = FEW_STEPS.model_copy(update={"lora_r": 4, "lora_dropout": 0.3})
"""Step 2 has batches of 6, 6, 6 and 1: with the last one, a process has no pair of its own."""
FORMS = {
    "merged": {"lora_handoff": "merge"},
    "handed on": {"lora_handoff": "continue"},
    "DoRA beside a whole module, handed on": {
        "lora_handoff": "continue",
        "lora_dora": True,
        "lora_modules_to_save": ["embed_tokens"],
    },
}

EACH_TIME = ("fsdp2", "handed on")
"""This one is tested each time, all others with the slow tests."""


@pytest.mark.parametrize(
    ("strategy", "form"),
    [
        pytest.param(strategy, form, marks=() if (strategy, form) == EACH_TIME else SLOW)
        for strategy in ("ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")
        for form in FORMS
    ],
)
def test_adapters_of_two_processes_go_on_exactly(tmp_path, strategy, form):
    skip_without(strategy)
    launch = LaunchConfig(processes=2, strategy=strategy, device="cpu", threads=1)
    check_goes_on(tmp_path, TRAINING.model_copy(update=FORMS[form]), launch)


@pytest.mark.parametrize(
    ("precision", "form"),
    [
        ("nf4", "handed on"),
        *(
            pytest.param(precision, form, marks=SLOW)
            for precision in ("bf16", "int8", "nf4")
            for form in ("merged", "handed on")
            if (precision, form) != ("nf4", "handed on")
        ),
    ],
)
def test_adapters_over_a_base_in_fewer_bits_go_on_exactly(tmp_path, precision, form):
    if precision != "bf16":
        pytest.importorskip("bitsandbytes", reason="the extra `quantisation` is not installed")
    training = TRAINING.model_copy(update=FORMS[form])
    check_goes_on(tmp_path, training, LAUNCH, precision=precision)


def check_goes_on(
    folder: Path, training: TrainingConfig, launch: LaunchConfig, *, precision: str = "fp32"
) -> None:
    """Take step 2 at once, then again with a stop in the middle: nothing differs."""
    run = prepare_run(folder, pairs=PAIRS)
    held = ModelConfig(name_or_path=str(run.model), base_precision=precision)
    fields = {"launch": launch, "model": held}
    with forked_ranks():
        take(run, 1, training, **fields, input_digest=model_digest(run.model, precision=precision))
        fields["input_digest"] = run.record(1)["outputs"]["model"]
        take(run, 2, training, **fields)
        whole, curve = run.record(2), run.metrics(2)
        shutil.rmtree(run.folder.step(2))
        saved = stop_step(run, step=2, killed=False, training=training, **fields)
        take(run, 2, training, **fields)
    assert 0 < saved < whole["optimizer_steps"] == 4
    assert run.record(2)["resumed_at"] == [saved]
    assert run.record(2)["outputs"] == whole["outputs"]
    assert run.metrics(2) == curve
    assert not states_folder(run.folder.step(2)).exists()


def take(run: PreparedRun, step: int, training: TrainingConfig, **fields) -> None:
    """A step in processes of its own; M_1 is scored on step 2's pairs by step 1."""
    spec = run.spec(
        step,
        training,
        measure_output=True,
        evaluation=EvaluationConfig(every=2),
        **fields,
    )
    run_stage(spec, listen=lambda event: None)
