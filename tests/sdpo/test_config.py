import json

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from sdpo.config import Group, RunConfig, StepConfig, TrainingConfig
from sdpo.recipe import make_config


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
    assert names == {"RunConfig"} | {group.__name__ for group in Group.__subclasses__()}


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
