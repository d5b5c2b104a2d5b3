"""Settings of other trainers are told what they are here."""

import dataclasses
import re

import pytest
import transformers

from sdpo.config import RunConfig
from sdpo.config.elsewhere import ELSEWHERE
from sdpo.config.load import _all_keys, make_config
from sdpo.errors import ConfigError
from sdpo.objectives import OBJECTIVES

KEYS = {*_all_keys(RunConfig)}
PATH = re.compile(
    r"`((?:model|data|training|supervised|partition|probe|launch|store|tracking)\.[\w.]+)"
)


def test_every_setting_that_is_named_exists():
    named = {path for text in ELSEWHERE.values() for path in PATH.findall(text)}
    assert named
    assert named - KEYS - {"data.sources"} == set()


def test_no_setting_of_this_project_is_said_to_be_another():
    # A source's or group's own names count where they stand alone.
    assert {key.split(".")[-1] for key in KEYS}.isdisjoint(ELSEWHERE)


def test_the_objectives_that_are_named_exist():
    names = re.findall(
        r"\b(dpo|ipo|hinge|robust|exo|sppo|nca|apo_zero|apo_down)\b", ELSEWHERE["loss_type"]
    )
    assert {*names} == {*names} & OBJECTIVES.keys()


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("gradient_accumulation_steps", "training.batch_size"),
        ("max_seq_length", "data.max_length"),
        ("cutoff_len", "data.max_length"),
        ("eval_steps", "probe"),
        ("loss_type", "training.objective"),
        ("pref_ftx", "training.rpo_alpha"),
        ("min_lr_ratio", "training.min_lr_rate"),
    ],
)
@pytest.mark.parametrize("group", ["training", "data", "model"])
def test_a_setting_of_another_trainer_is_told_what_it_is_here(key, meant, group):
    with pytest.raises(ConfigError, match=rf"{group}\.{key}: unknown key; .*`{meant}"):
        make_config({group: {key: 1}})
    with pytest.raises(ConfigError, match=rf"^{key}: unknown key; .*`{meant}"):
        make_config({key: 1})


def test_every_setting_that_trl_adds_for_dpo_is_known():
    trl = pytest.importorskip("trl")
    common = {f.name for f in dataclasses.fields(transformers.TrainingArguments)}
    own = {f.name for f in dataclasses.fields(trl.DPOConfig)} - common
    assert own - {key.split(".")[-1] for key in KEYS} - ELSEWHERE.keys() == set()
