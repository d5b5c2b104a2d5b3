"""Recipes made of LLaMA-Factory's and axolotl's settings."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdpo.errors import ConfigError
from sdpo.migration import Migrated, from_axolotl, from_llama_factory, recipe_text

FACTORY = {"stage": "dpo", "finetuning_type": "full"}
AXOLOTL = {"rl": "dpo", "learning_rate": "1e-6"}


def factory(tmp_path: Path, settings: dict[str, Any], *overrides: str) -> Migrated:
    path = tmp_path / "factory.yaml"
    path.write_text(yaml.safe_dump({**FACTORY, **settings}))
    return from_llama_factory(path, overrides=overrides)


def axolotl(tmp_path: Path, settings: dict[str, Any], *overrides: str) -> Migrated:
    path = tmp_path / "axolotl.yaml"
    path.write_text(yaml.safe_dump({**AXOLOTL, **settings}))
    return from_axolotl(path, overrides=overrides)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"learning_rate": 5e-5, "beta": 0.1, "epochs": 3, "batch_size": 8, "lora_r": 0}),
        ({"pref_loss": "orpo", "pref_beta": 0.3}, {"preference_weight": 0.3}),
        ({"pref_loss": "simpo", "pref_beta": 2.0}, {"simpo_gamma_beta_ratio": 0.25}),
        ({"dpo_label_smoothing": 0.1}, {"objective": "cdpo", "label_smoothing": 0.1}),
        ({"pref_ftx": 0.2}, {"rpo_alpha": 0.2, "objective": "dpo"}),
        ({"finetuning_type": "lora"}, {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0}),
        ({"finetuning_type": "lora", "lora_target": "q_proj,v_proj"},
         {"lora_target_modules": ["q_proj", "v_proj"]}),
        ({"disable_gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        ({"warmup_ratio": 0.1, "bf16": True}, {"warmup_ratio": 0.1, "precision": "bf16"}),
        ({"ref_model": "a/b"}, {"reference": "model", "reference_model": "a/b"}),
    ],
)  # fmt: skip
def test_what_llama_factory_says_is_what_it_means_there(tmp_path, settings, expected):
    training = factory(tmp_path, settings).config.training
    assert {name: getattr(training, name) for name in expected} == expected


def test_data_sets_of_llama_factory_are_found_by_their_file_of_names(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    entries = {"mine": {"file_name": "mine.json", "ranking": True}, "hub": {"hf_hub_url": "a/b"}}
    (data / "dataset_info.json").write_text(json.dumps(entries))
    made = factory(tmp_path, {"dataset": "mine, hub,gone", "dataset_dir": str(data)})
    paths = [source.path for source in made.config.data.sources]
    assert paths == [str(data / "mine.json"), "a/b"]
    assert "`gone`" in made.notes.to_fill_in[0]
    assert made.config.data.max_length == 2048


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"learning_rate": 1e-6, "epochs": 1, "batch_size": 1, "lr_schedule": "cosine"}),
        ({}, {"warmup_ratio": 0.03, "precision": "fp32", "objective": "dpo", "beta": 0.1}),
        ({"rl": "ipo", "rl_beta": 0.2}, {"objective": "ipo", "beta": 0.2}),
        ({"rl": "orpo", "orpo_alpha": 0.3}, {"preference_weight": 0.3}),
        ({"rl": "simpo", "rl_beta": 2, "cpo_alpha": 0.1},
         {"simpo_gamma_beta_ratio": 0.25, "rpo_alpha": 0.1}),
        ({"trl": {"beta": 0.4}, "warmup_steps": 20}, {"beta": 0.4, "warmup_steps": 20}),
        ({"bf16": "auto", "gradient_checkpointing": True},
         {"precision": "auto", "gradient_checkpointing": True}),
        ({"lr_scheduler": "constant"}, {"lr_schedule": "constant", "warmup_ratio": 0.0}),
        ({"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True},
         {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["all-linear"]}),
    ],
)  # fmt: skip
def test_what_axolotl_says_is_what_it_means_there(tmp_path, settings, expected):
    training = axolotl(tmp_path, settings).config.training
    assert {name: getattr(training, name) for name in expected} == expected


def test_models_and_data_of_axolotl_are_those_of_the_file(tmp_path):
    sets = [{"path": "a/b", "split": "train_prefs", "type": "chatml.intel"}]
    config = axolotl(tmp_path, {"base_model": "x/y", "datasets": sets, "sequence_len": 99}).config
    assert (config.model.name_or_path, config.data.max_length) == ("x/y", 99)
    assert [(s.path, s.split) for s in config.data.sources] == [("a/b", "train_prefs")]


@pytest.mark.parametrize("make", [factory, axolotl])
def test_what_has_no_counterpart_is_named(tmp_path, make):
    made = make(tmp_path, {"neftune_noise_alpha": 5, "sample_packing": True})
    text = recipe_text(made, origin="x")
    assert "neftune_noise_alpha: 5" in text
    assert "sample_packing: True" in text


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (factory, {"stage": "sft"}, "only `stage: dpo`"),
        (factory, {"pref_loss": "kto_pair"}, "kto_pair has no counterpart"),
        (factory, {"finetuning_type": "freeze"}, "freeze has no counterpart"),
        (axolotl, {"rl": "kto"}, "rl: kto has no counterpart"),
        (axolotl, {"rl": None}, "without `rl` it trains on no pairs"),
        (axolotl, {"learning_rate": None}, "learning_rate is not said"),
        (axolotl, {"adapter": "llama-adapter"}, "lora and qlora are here"),
    ],
)
def test_what_would_be_something_else_is_refused(tmp_path, make, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, settings)
