"""A recipe made of TRL's settings: each of them is in it, or is said to have no counterpart."""

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdpo.config import RunConfig
from sdpo.config.elsewhere import ELSEWHERE
from sdpo.config.load import make_config
from sdpo.errors import ConfigError
from sdpo.migration import Migrated, from_llama_factory, from_trl, recipe_text
from sdpo.migration.trl import DPO_DEFAULTS, MODEL_DEFAULTS, WITHOUT_EFFECT

trl = pytest.importorskip("trl")
DPO = {f.name: f for f in dataclasses.fields(trl.DPOConfig)}
OF_MODEL = {
    f.name: f for kind in (trl.ModelConfig, trl.ScriptArguments) for f in dataclasses.fields(kind)
}
OTHER = {
    **{"loss_type": "ipo", "optim": "rmsprop", "lr_scheduler_type": "cosine", "bf16": False},
    **{"warmup_steps": 0.2, "truncation_mode": "keep_end", "report_to": "wandb", "seed": 7},
    **{"eval_strategy": "steps", "eval_steps": 5, "max_length": 77, "label_smoothing": 0.2},
    **{"lr_scheduler_kwargs": {"num_cycles": 2}, "model_init_kwargs": {"revision": "v1"}},
    **{"loss_weights": [0.5], "f_divergence_type": "js_divergence", "disable_dropout": False},
    **{"gradient_checkpointing": False, "num_train_epochs": 2, "max_steps": 9},
    **{"output_dir": "out/one", "run_name": "two", "attn_implementation": "eager"},
    **{"dtype": "bfloat16", "bnb_4bit_quant_type": "fp4", "load_in_4bit": True},
}
"""Values that are not the defaults, of settings of which any number or text will not do."""
BESIDE = {
    "bnb_4bit_quant_type": {"load_in_4bit": True},
    "eval_steps": {"eval_strategy": "steps"},
    "dataset_config": {"dataset_name": "some/data"},
    "dataset_train_split": {"dataset_name": "some/data"},
}
OF_OTHERS = {
    "loss_weights": "a single loss has no weight beside another's",
    "eval_strategy": "eval_steps says how often",
    "ref_model_mixup_alpha": "sync_ref_model turns it on, and that has no counterpart",
    "ref_model_sync_steps": "sync_ref_model turns it on, and that has no counterpart",
    "f_alpha_divergence_coef": "f_divergence_type turns it on, which is refused",
}
"""What is read with another setting and says nothing alone."""


def made(tmp_path: Path, settings: dict[str, Any], *overrides: str, devices: int = 1) -> Migrated:
    path = tmp_path / "dpo.yaml"
    path.write_text(yaml.safe_dump({"model_name_or_path": "some/model", **settings}))
    return from_trl(path, overrides=overrides, devices=devices)


def said_of(settings: dict[str, Any], tmp_path: Path) -> str:
    try:
        return recipe_text(made(tmp_path, settings), origin="dpo.yaml")
    except ConfigError as error:
        return str(error)


def another(name: str, field: "dataclasses.Field[Any]") -> Any:
    if name in OTHER:
        return OTHER[name]
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, int | float):
        return field.default + 1 if isinstance(field.default, int) else field.default / 2 + 0.125
    kind = str(field.type)
    return 3 if "int" in kind or "float" in kind else True if "bool" in kind else "something"


@pytest.mark.parametrize("name", sorted({*DPO, *OF_MODEL}))
def test_every_setting_changes_the_recipe_or_is_named(tmp_path, name):
    """So that one that TRL gets is not dropped without a word."""
    value = another(name, {**OF_MODEL, **DPO}[name])
    common = {"use_peft": True} if name not in DPO and name != "use_peft" else {}
    common |= BESIDE.get(name, {})
    before, after = said_of(common, tmp_path), said_of({**common, name: value}, tmp_path)
    if name in {*WITHOUT_EFFECT, *OF_OTHERS}:
        return
    assert before != after, name
    assert name not in DPO_DEFAULTS or DPO_DEFAULTS[name] != value


def test_what_is_written_for_a_setting_that_is_not_said_is_trls_own_default():
    known = {**OF_MODEL, **DPO}
    mine = {**MODEL_DEFAULTS, **DPO_DEFAULTS}
    gone = {"warmup_ratio"}  # of transformers before 5.2
    assert mine.keys() - known.keys() == gone
    for name, value in mine.items():
        if name in gone:
            continue
        field = known[name]
        default = (
            field.default if field.default is not dataclasses.MISSING else field.default_factory()
        )
        assert getattr(default, "value", default) == value, name


def test_a_recipe_of_defaults_has_those_of_trl_and_not_this_projects(tmp_path):
    training = made(tmp_path, {"dataset_name": "some/data"}).config.training
    ours = RunConfig().training
    assert (training.learning_rate, training.epochs, training.batch_size) == (1e-6, 3, 8)
    assert (training.warmup_ratio, training.precision, training.gradient_checkpointing) == (
        *(0.0, "bf16", True),
    )
    assert ours.learning_rate != training.learning_rate
    assert ours.warmup_ratio != training.warmup_ratio


def test_the_text_is_the_recipe(tmp_path):
    given = made(tmp_path, {"dataset_name": "some/data", "lora_r": 4, "use_peft": True})
    text = recipe_text(given, origin="a\u2028 file: x")
    assert make_config(yaml.safe_load(text)) == given.config
    assert all(line.startswith("#") for line in text.partition("\n\n")[0].splitlines())


@pytest.mark.parametrize(
    ("settings", "group", "expected"),
    [
        (
            {"loss_type": "exo_pair", "label_smoothing": 1e-3},
            "training",
            {"objective": "exo", "exo_epsilon": 1e-3},
        ),
        (
            {"loss_type": "robust", "label_smoothing": 0.1},
            "training",
            {"objective": "robust", "label_smoothing": 0.1},
        ),
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.3]},
            "training",
            {"objective": "dpo", "rpo_alpha": 0.3},
        ),
        ({"loss_type": "nca_pair", "beta": "1e-2"}, "training", {"objective": "nca", "beta": 0.01}),
        ({"loss_type": "sft"}, "training", {"objective": "sft"}),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
            "training",
            {"batch_size": 32},
        ),
        ({"warmup_steps": 30}, "training", {"warmup_steps": 30}),
        ({"warmup_steps": 0.1}, "training", {"warmup_ratio": 0.1, "warmup_steps": 0}),
        ({"warmup_ratio": 0.1}, "training", {"warmup_ratio": 0.1}),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 9},
            "training",
            {"lr_schedule": "constant", "warmup_ratio": 0.0, "warmup_steps": 0},
        ),
        (
            {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 9},
            "training",
            {"lr_schedule": "constant", "warmup_steps": 9},
        ),
        (
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "learning_rate": 1e-6,
                "lr_scheduler_kwargs": {"min_lr": 1e-7},
            },
            "training",
            {"min_lr_rate": 0.1},
        ),
        ({"num_train_epochs": 0.5}, "training", {"epochs": 1}),
        ({"fp16": True}, "training", {"precision": "bf16"}),
        ({"bf16": False}, "training", {"precision": "fp32"}),
        ({"use_peft": True}, "training", {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}),
        ({"use_peft": True, "load_in_4bit": True}, "model", {"base_precision": "nf4"}),
        ({"use_peft": True, "load_in_8bit": True}, "model", {"base_precision": "int8"}),
        ({"max_length": 2048}, "data", {"max_length": 2048}),
        (
            {"attn_implementation": "eager", "model_revision": "v2"},
            "model",
            {"attention": "eager", "revision": "v2"},
        ),
        ({"model_init_kwargs": {"attn_implementation": "eager"}}, "model", {"attention": "eager"}),
        (
            {"report_to": ["tensorboard"], "project": "mine"},
            "tracking",
            {"tools": ["tensorboard"], "project": "mine"},
        ),
    ],
)
def test_a_setting_becomes_what_it_means_here(tmp_path, settings, group, expected):
    found = getattr(made(tmp_path, settings, devices=4).config, group)
    for name, value in expected.items():
        number = isinstance(value, float)
        assert getattr(found, name) == (pytest.approx(value) if number else value), name


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in packages else find(name)
    )


@pytest.mark.parametrize("making", ["from_trl", "from_llama_factory"])
def test_a_tracker_that_is_not_installed_is_told_with_its_extra_and_the_way_without(
    tmp_path, monkeypatch, making
):
    without(monkeypatch, "wandb", "trackio")
    path = tmp_path / "dpo.yaml"
    settings = {"report_to": ["tensorboard", "wandb"], "stage": "dpo", "beta": 0.1}
    path.write_text(yaml.safe_dump({"model_name_or_path": "some/model", **settings}))
    making = {"from_trl": from_trl, "from_llama_factory": from_llama_factory}[making]
    told = " ".join(making(path).notes.to_fill_in)
    assert (
        "the recipe wants wandb, which is not installed: pip install wandb (this project's extra "
        "`tracking`), or go without: --set tracking.tools=[tensorboard]"
    ) in told
    assert "wants tensorboard" not in told
    assert "wandb" not in " ".join(making(path, overrides=["tracking.tools=[]"]).notes.to_fill_in)


def test_what_is_said_of_a_reference_that_moves_is_what_the_pages_say(tmp_path):
    (said,) = [s for s in made(tmp_path, {"sync_ref_model": True}).notes.absent if "sync" in s]
    assert said == f"sync_ref_model: True: {ELSEWHERE['sync_ref_model']}"
    remedy = re.findall("`([^`]+)`", said)
    assert remedy == ["partition.strategy: stratified", "partition.fractions"]
    for page in ("migrate", "from-trl"):
        (line,) = re.findall(r"`sync_ref_model`.*?(?:\.\n| \|\n)", page_of(page), re.DOTALL)
        assert all(f"`{each}`" in line for each in remedy), line


def page_of(name: str) -> str:
    return (Path(__file__).parents[3] / "docs" / f"{name}.md").read_text()


def test_where_the_model_will_be_is_told_in_place_of_the_output(tmp_path):
    found = made(tmp_path, {"output_dir": "out/one", "dataset_name": "some/data"})
    (said,) = [each for each in found.notes.differs if each.startswith("output_dir")]
    assert "output_dir: out/one: " in said
    assert "runs/one/step-1/model" in said
    assert "`sdpo export one FOLDER`" in said


def test_sources_are_those_of_the_file(tmp_path):
    mixture = [
        {"path": "a/b", "name": "easy", "split": "train_prefs"},
        {"path": "json", "data_files": "x.jsonl"},
    ]
    sources = made(tmp_path, {"datasets": mixture}).config.data.sources
    assert [(s.path, s.subset, s.split) for s in sources] == [
        ("a/b", "easy", "train_prefs"),
        ("x.jsonl", "", "train"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss_type": "discopop"},
            "loss_type: discopop has no counterpart.*--set training.objective",
        ),
        ({"loss_type": ["sigmoid", "bco_pair", "sft"]}, "has no counterpart"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 1]}, "with a weight of 1"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1]}, "loss_weights"),
        ({"lr_scheduler_type": "polynomial"}, "polynomial.*--set training.lr_schedule"),
        ({"f_divergence_type": "js_divergence"}, "only the reverse KL"),
        ({"beta": "much"}, "beta is much, where TRL has a number"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"bf16": "perhaps"}, "true or false"),
        ({"per_device_train_batch_size": 1.5}, "whole number"),
        ({"beta": -1}, "training.beta"),
    ],
)
def test_what_would_be_something_else_is_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, settings)


def test_what_is_refused_can_be_chosen(tmp_path):
    settings = {"loss_type": "discopop", "lr_scheduler_type": "polynomial"}
    found = made(tmp_path, settings, "training.objective=ipo", "training.lr_schedule=cosine")
    assert (found.config.training.objective, found.config.training.lr_schedule) == ("ipo", "cosine")


def test_json_is_read_as_well_and_other_files_are_refused(tmp_path):
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"beta": 0.3, "learning_rate": 1e-7}))
    assert from_trl(path).config.training.beta == 0.3
    path.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="holds no settings"):
        from_trl(path)
    path.write_text('{"colour": "red"}')
    with pytest.raises(ConfigError, match="none of the settings of TRL"):
        from_trl(path)
    path.write_text('{"beta": ')
    with pytest.raises(ConfigError, match="neither YAML nor JSON"):
        from_trl(path)
    for missing in (tmp_path, tmp_path / "nothing.yaml"):
        with pytest.raises(ConfigError, match=r"is a folder|no file at"):
            from_trl(missing)
