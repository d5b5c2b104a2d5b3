import re
import subprocess
import sys

import pytest

from sdpo.config import TrainingConfig, describe
from sdpo.config.annotations import OfFormula, marked
from sdpo.objectives import (
    OBJECTIVES,
    objective_names,
    other_name,
    settings_of,
)
from sdpo.objectives.losses import LOSSES


def test_every_name_has_its_facts():
    assert list(LOSSES) == list(OBJECTIVES) == objective_names()
    assert all(re.fullmatch(r"\d{4}\.\d{5}", facts.paper) for facts in OBJECTIVES.values())
    titles = [facts.title for facts in OBJECTIVES.values()]
    assert len(set(titles)) == len(titles)


def test_the_issues_objectives_are_there():
    wanted = "dpo cdpo robust hinge ipo ipo_sum sppo exo nca cal_dpo apo_zero apo_down simpo orpo "
    wanted += "orpo_one_stage asft asft_one_stage hypo dpo_norm sft"
    assert set(wanted.split()) == set(OBJECTIVES)


def test_settings_of_objectives_are_training_settings():
    read = {name for facts in OBJECTIVES.values() for name in facts.settings}
    assert read == set(marked(TrainingConfig, OfFormula))


def test_an_objective_without_reference_has_no_constant_loss_at_it():
    for facts in OBJECTIVES.values():
        assert facts.needs_reference or not facts.constant_at_reference


@pytest.mark.parametrize(
    ("training", "text"),
    [
        ({}, "DPO, β 0.1"),
        ({"objective": "simpo", "beta": 2.0}, "SimPO, β 2, γ/β 0.5"),
        ({"objective": "orpo_one_stage"}, "ORPO, one stage, λ 1"),
        ({"objective": "sft"}, "SFT on the chosen side"),
    ],
)
def test_an_objective_is_described_by_the_settings_that_it_reads(training, text):
    assert describe(TrainingConfig(**training).model_dump()) == text


def test_settings_that_the_formula_does_not_read_are_not_handed_to_it():
    training = TrainingConfig(objective="robust", label_smoothing=0.2).model_dump()
    assert settings_of(training) == {"beta": 0.1, "label_smoothing": 0.2}


def test_names_of_others_are_known():
    assert other_name("sigmoid") == "dpo"
    assert other_name("dpo") == other_name("nonsense") == ""
    assert {other_name(n) for n in ("exo_pair", "nca_pair", "sppo_hard", "sigmoid_norm")} == {
        *("exo", "nca", "sppo", "dpo_norm")
    }


def test_the_facts_are_read_without_torch():
    code = "import sys, sdpo.objectives, sdpo.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
