"""A stage's phases: what it does, in order, with the model that it has loaded."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from sdpo.config import (
    EvaluationConfig,
    LaunchConfig,
    ModelConfig,
    ProbeConfig,
    TrackingConfig,
    TrainingConfig,
)
from sdpo.processes.stage_specs import StepSpec, read_spec


def spec(*phases: str) -> StepSpec:
    here = Path("here")
    return StepSpec.model_validate(
        {
            "name": "step-1",
            "run": here,
            "model": ModelConfig(name_or_path="model"),
            "launch": LaunchConfig(),
            "step": 1,
            "phases": phases,
            "input_model": here,
            "input_digest": "",
            "input_name": "M_0",
            "base": here,
            "tokens": here,
            "pairs": here,
            "usable": here,
            "cache": here,
            "training": TrainingConfig(),
            "evaluation": EvaluationConfig(),
            "probe": ProbeConfig(),
            "tracking": TrackingConfig(),
        }
    )


def test_what_comes_before_training_sees_the_input_and_what_comes_after_the_result() -> None:
    step = spec("reference", "measure", "preference", "measure")
    assert (step.trains, step.before, step.after) == (
        "preference",
        ("reference", "measure"),
        ("measure",),
    )


def test_a_stage_that_only_looks_trains_nothing() -> None:
    look = spec("measure")
    assert (look.trains, look.before, look.after) == (None, ("measure",), ())


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        (("preference",), "scored before it is trained"),
        (("preference", "reference"), "scored before it is trained"),
        (("reference", "preference", "supervised"), "trains once"),
        (("reference", "dream"), "phases"),
    ],
)
def test_phases_that_make_no_sense_are_refused(phases: tuple[str, ...], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        spec(*phases)


def test_the_stage_reads_the_phases_that_it_was_given(tmp_path: Path) -> None:
    given = spec("supervised")
    path = tmp_path / "step-0.json"
    path.write_text(given.model_dump_json(), encoding="utf-8")
    assert read_spec(path) == given
