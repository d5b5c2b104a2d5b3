import json

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from sdpo.config import Group, RunConfig, StepConfig, TrainingConfig, settings_without_effect
from sdpo.config.load import make_config
from sdpo.errors import ConfigError


def groups(group: type[BaseModel]) -> list[type[BaseModel]]:
    """``group`` and every group within it."""
    found = [group]
    for field in group.model_fields.values():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += groups(inner)
    return found


FIELDS = [
    pytest.param(group, name, id=f"{group.__name__}.{name}")
    for group in dict.fromkeys(groups(RunConfig))
    for name in group.model_fields
]


def test_every_group_is_looked_at():
    names = {parameter.id.split(".")[0] for parameter in FIELDS}
    every, waiting = set[type[Group]](), [Group]
    while waiting:
        below = waiting.pop().__subclasses__()
        waiting += (of_config := [g for g in below if g.__module__.startswith("sdpo.config")])
        every |= set(of_config)
    # A group that another one adds to need not be in the recipe itself.
    due = {group.__name__ for group in every if not group.__subclasses__()} | {"RunConfig"}
    assert due <= names <= {group.__name__ for group in every}


@pytest.mark.parametrize(("group", "name"), FIELDS)
def test_a_field_has_a_description_and_a_literal_default(group, name):
    field = group.model_fields[name]
    assert field.description
    assert field.description.endswith((".", "?"))
    assert field.default_factory is None
    assert field.default is not PydanticUndefined
    assert field.get_default() == group().__getattribute__(name)


def test_defaults_are_the_papers_recipe():
    training, data = RunConfig().training, RunConfig().data
    assert training.objective == "dpo"
    assert training.beta == 0.1
    assert training.learning_rate == 5e-7
    assert training.lr_schedule == "linear"
    assert training.warmup_ratio == 0.1
    assert training.batch_size == 32
    assert training.epochs == 1
    assert training.optimizer == "adamw"
    assert data.max_length == 1024
    assert RunConfig().partition.fractions == [0.1667, 0.8333]
    assert RunConfig().partition.strategy == "natural"


def test_defaults_are_possible():
    assert make_config({}) == RunConfig()


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().training.beta = 1.0  # type: ignore[misc]


def test_a_step_can_override_every_training_setting():
    assert list(StepConfig.model_fields) == list(TrainingConfig.model_fields)
    assert all(field.default is None for field in StepConfig.model_fields.values())


@pytest.mark.parametrize("name", TrainingConfig.model_fields)
@pytest.mark.parametrize("value", [-1, 2.5, "nonsense", [3]])
def test_a_step_accepts_and_refuses_what_training_does(name, value):
    def accepted(group: type[BaseModel]) -> bool:
        try:
            group.model_validate({name: value})
        except ValidationError:
            return False
        return True

    assert accepted(StepConfig) == accepted(TrainingConfig)


def test_training_of_a_step_is_training_with_its_overrides():
    config = make_config({"training": {"beta": 0.3}, "steps": [{}, {"learning_rate": 1e-6}]})
    assert config.training_of(1) == config.training
    assert config.training_of(2) == config.training.model_copy(update={"learning_rate": 1e-6})
    assert config.training_of(2).beta == 0.3


def test_a_step_without_an_entry_trains_as_training_says():
    config = make_config({"steps": [{"beta": 0.5}]})
    assert config.training_of(1).beta == 0.5
    assert config.training_of(2) == config.training


def test_the_json_schema_can_be_printed_and_holds_every_description():
    text = json.dumps(RunConfig.model_json_schema(), allow_nan=False)
    for parameter in FIELDS:
        group, name = parameter.values
        assert json.dumps(group.model_fields[name].description) in text


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"objective": "sigmoid"},
            r"training\.objective: what others call `sigmoid` is `dpo` here",
        ),
        ({"objective": "ppo"}, r"training\.objective: `ppo` is not known .*mean `sppo`\?"),
        ({"label_smoothing": 0.5}, r"training\.label_smoothing: .* less than 0\.5"),
        ({"exo_epsilon": 0}, r"training\.exo_epsilon: .* greater than 0"),
        ({"preference_weight": 0}, r"training\.preference_weight: .* greater than 0"),
        ({"precision": "fp16"}, r"training\.precision: fp16 is refused: it ends at 65504"),
    ],
)
def test_what_no_objective_can_use_is_refused_by_name(training, message):
    with pytest.raises(ConfigError, match=message):
        make_config({"training": training})
    with pytest.raises(ConfigError, match=message.replace("training", r"steps\.0", 1)):
        make_config({"steps": [training]})


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({}, []),
        ({"training": {"objective": "robust", "label_smoothing": 0.2}}, []),
        (
            {"training": {"label_smoothing": 0.2}},
            ["training.label_smoothing has no effect on objective dpo"],
        ),
        (
            {"training": {"objective": "sft", "beta": 0.3}},
            ["training.beta has no effect on objective sft"],
        ),
        (
            {"training": {"lora_alpha": 32, "optimizer": "rmsprop", "adam_beta2": 0.9}},
            [
                "training.adam_beta2 has no effect on optimizer rmsprop",
                "training.lora_alpha has no effect because lora_r is 0",
            ],
        ),
        ({"training": {"optimizer": "adamw_8bit", "adam_beta2": 0.9}}, []),
        (
            {
                "launch": {"processes": 4},
                "training": {"batch_size": 2},
                "steps": [{}, {"batch_size": 4}, {"batch_size": 1}],
            },
            [
                f"launch.processes 4 trains no faster than {pairs}: an optimizer step has "
                f"{where}.batch_size ({pairs}) pairs, and processes without a pair wait for those "
                "that have one"
                for where, pairs in (("training", 2), ("steps.2", 1))
            ],
        ),
    ],
)
def test_a_setting_that_nothing_reads_is_named(values, lines):
    assert settings_without_effect(make_config(values)) == lines


def test_every_step_is_looked_at_with_the_settings_it_takes_over():
    steps = [{}, {"objective": "simpo", "simpo_gamma_beta_ratio": 0.3, "cal_dpo_c": 2.0}]
    assert settings_without_effect(make_config({"steps": steps})) == [
        "steps.1.cal_dpo_c has no effect on objective simpo"
    ]
    steps = [{"simpo_gamma_beta_ratio": 0.3}, {"lora_alpha": 8}, {"lora_r": 4, "lora_alpha": 8}]
    assert settings_without_effect(make_config({"steps": steps})) == [
        "steps.0.simpo_gamma_beta_ratio has no effect on objective dpo",
        "steps.1.lora_alpha has no effect because lora_r is 0",
    ]


def test_a_setting_of_training_has_an_effect_where_a_step_takes_it_over():
    training = {"label_smoothing": 0.2}
    read = {"training": training, "steps": [{}, {"objective": "cdpo"}]}
    assert settings_without_effect(make_config(read)) == []
    replaced = {"training": training, "steps": [{"objective": "cdpo", "label_smoothing": 0.3}]}
    assert settings_without_effect(make_config(replaced)) == [
        "training.label_smoothing has no effect on objective dpo"
    ]


@pytest.mark.parametrize(
    ("supervised", "message"),
    [
        ({"columns": {"messages": "m", "prompt": "p"}}, "`messages` beside `prompt`"),
        ({"columns": {"prompt": "p"}}, "prompt and .completion are set together"),
    ],
)
def test_columns_of_supervised_data_that_contradict_each_other_are_refused(supervised, message):
    values = {"enabled": True, "examples": "source", "path": "x.jsonl"} | supervised
    with pytest.raises(ConfigError, match=message):
        make_config({"supervised": values})


def test_how_supervised_data_is_read_has_no_effect_on_the_chosen_sides():
    supervised = {"enabled": True, "split": "train_sft", "columns": {"messages": "m"}}
    assert settings_without_effect(make_config({"supervised": supervised})) == [
        "supervised.split has no effect: supervised.examples is `chosen`",
        "supervised.columns has no effect: supervised.examples is `chosen`",
    ]
