"""The short form of a run: what its fields make of a recipe."""

from pathlib import Path
from typing import Any

import pytest

from flows.align import align, recipe_of
from flows.recipes.presets import configured
from sdpo.config import RunConfig
from sdpo.errors import ConfigError


def made(recipe: str = "demo", **given: Any) -> RunConfig:
    """The run of the form with these fields, the others empty."""
    parts: dict[str, Any] = {
        name: given.pop(name, empty)
        for name, empty in (("sources", []), ("name", ""), ("overrides", []))
    }
    return recipe_of(recipe, fields=given, **parts)


def test_empty_fields_leave_the_recipe_as_it_is() -> None:
    empty = {"model": "", "strategy": None, "objective": "", "beta": None, "limit": None}
    assert made(**empty) == configured(Path("demo"))


def test_every_field_is_the_setting_that_its_description_names() -> None:
    config = made(
        model="mine",
        sources=["a.jsonl", "org/b"],
        strategy="single",
        objective="ipo",
        beta=0.2,
        learning_rate=1e-6,
        limit=8,
        name="other",
        overrides=["training.epochs=2"],
    )
    assert (config.name, config.model.name_or_path) == ("other", "mine")
    assert [source.path for source in config.data.sources] == ["a.jsonl", "org/b"]
    assert (config.partition.strategy, config.data.limit) == ("single", 8)
    training = config.training
    assert (training.objective, training.beta, training.learning_rate) == ("ipo", 0.2, 1e-6)
    assert training.epochs == 2
    assert config.evaluation == configured(Path("demo")).evaluation


def test_a_limit_of_0_is_all_pairs_whatever_the_recipe_says(tmp_path: Path) -> None:
    path = tmp_path / "few.yaml"
    path.write_text("extends: demo\ndata: {limit: 5}\n")
    assert made(str(path)).data.limit == 5
    assert made(str(path), limit=0).data.limit == 0


def test_another_model_is_not_looked_for_at_the_revision_of_the_recipes_model(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pinned.yaml"
    path.write_text("model: {name_or_path: org/model, revision: abc}\n")
    assert made(str(path)).model.revision == "abc"
    assert made(str(path), model="org/other").model.revision == ""
    both = made(str(path), model="org/other", overrides=["model.revision=v2"])
    assert both.model.revision == "v2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": ""}, "which recipe is to be run"),
        ({"recipe": " "}, "which recipe is to be run"),
        ({"recipe": "demos"}, "did you mean `demo`"),
        ({"recipe": "/nowhere/mine.yaml"}, "no recipe at /nowhere/mine.yaml"),
        ({"beta": 0.2, "overrides": ["training.beta=0.3"]}, "`training.beta` is given in a field"),
        ({"sources": ["a"], "overrides": ["data.sources.0.path=b"]}, "data.sources.0.path` is"),
        ({"overrides": ["training.bta=1"]}, "did you mean `beta`"),
        ({"name": "../up"}, "cannot be the name of a run"),
        ({"strategy": "natrual"}, "natural"),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_the_words_of_the_command_line(
    given: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        made(**given)


def test_a_call_without_a_recipe_fails_with_that_message(prefect_server: None) -> None:
    with pytest.raises(ConfigError, match="which recipe is to be run"):
        align()
