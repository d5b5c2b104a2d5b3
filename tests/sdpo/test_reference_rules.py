"""What the recipe may say of reference and target."""

import pytest

from sdpo.config import RunConfig, settings_without_effect
from sdpo.identity import step_identity
from sdpo.recipe import make_config
from sdpo.reference_rules import REFERENCE_FIELDS


def config(**training):
    return make_config({"training": training})


def test_reference_and_target_may_differ_by_step():
    made = make_config(
        {
            "training": {"reference": "base"},
            "steps": [{}, {"reference": "guided", "target": "base"}],
        }
    )
    choices = [(made.training_of(k).reference, made.training_of(k).target) for k in (1, 2, 3)]
    assert choices == [("base", "previous"), ("guided", "base"), ("base", "previous")]


@pytest.mark.parametrize("field", ["reference_model", "reference_revision"])
def test_a_model_that_is_no_reference_is_said_to_have_no_effect(field):
    (line,) = settings_without_effect(config(**{field: "org/model"}))
    assert line == f"training.{field} has no effect: training.reference is previous"


def test_a_model_that_a_step_takes_as_reference_has_an_effect():
    made = make_config(
        {"training": {"reference_model": "org/model"}, "steps": [{}, {"reference": "model"}]}
    )
    assert settings_without_effect(made) == []


def test_words_bear_no_identity_and_digests_do():
    inputs = {"reference": "a", "target": "b", "partition": "c", "tokenizer": "d"}

    def identity(made: RunConfig, **changed: str):
        return step_identity(
            made.training_of(1), launch=made.launch, model=made.model, inputs=inputs | changed
        )

    plain = identity(config())
    words = config(
        reference="model", reference_model="org/m", reference_revision="x", target="base"
    )
    assert identity(words) == plain
    assert not set(REFERENCE_FIELDS) & plain["training"].keys()
    assert identity(config(), reference="other") != plain
    assert identity(config(), target="other") != plain
