"""Recipes that build on others."""

from pathlib import Path

import pytest

from sdpo.config.load import load_recipe, read_recipe
from sdpo.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


BASE = """
name: base
model: {name_or_path: m, revision: v1}
data: {sources: [{name: a, path: a.jsonl}], max_length: 64}
training: {beta: 0.3, epochs: 2}
"""


def test_settings_are_laid_over_those_of_the_other_recipe_group_by_group(write):
    write("base.yaml", BASE)
    path = write("mine.yaml", "extends: base.yaml\ntraining: {beta: 0.5}\nmodel: {revision: v2}")
    config = load_recipe(path)
    assert (config.training.beta, config.training.epochs) == (0.5, 2)
    assert (config.model.name_or_path, config.model.revision) == ("m", "v2")
    assert config.name == "mine", "a name is not taken over"


def test_a_list_is_replaced_whole(write):
    write("base.yaml", BASE)
    path = write("mine.yaml", "extends: base.yaml\ndata: {sources: [{name: b, path: b.jsonl}]}")
    config = load_recipe(path)
    assert [source.name for source in config.data.sources] == ["b"]
    assert config.data.max_length == 64


def test_overrides_come_last(write):
    write("base.yaml", BASE)
    path = write("mine.yaml", "extends: base.yaml\ntraining: {beta: 0.5}")
    config = load_recipe(path, overrides=["training.beta=0.7", "data.sources.a.max_pairs=3"])
    assert config.training.beta == 0.7
    assert config.data.sources[0].max_pairs == 3


def test_recipes_extend_over_several_files_relative_to_each(write):
    write("below/base.yaml", BASE)
    write("below/middle.yaml", "extends: base.yaml\ntraining: {epochs: 3}")
    path = write("mine.yaml", "extends: below/middle.yaml\ntraining: {beta: 0.5}")
    config = load_recipe(path)
    assert (config.training.beta, config.training.epochs) == (0.5, 3)
    assert config.data.max_length == 64


def test_a_preset_is_extended_by_its_name_and_a_file_beside_the_recipe_comes_first(write):
    presets = write("presets/known.yaml", BASE).parent
    path = write("mine.yaml", "extends: known\ntraining: {epochs: 5}")
    assert load_recipe(path, presets=presets).training.beta == 0.3
    write("known", "training: {beta: 0.9}")
    assert load_recipe(path, presets=presets).training.beta == 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: absent", "extends: `absent` is neither a file beside it nor a preset"),
        ("extends: [a, b]", r"extends: name one recipe, got \['a', 'b'\]"),
        ("extends: mine.yaml", "in a circle: mine.yaml -> mine.yaml"),
        ("extends: there.yaml", "in a circle: mine.yaml -> there.yaml -> mine.yaml"),
        ("extends: list.yaml", "list.yaml: a recipe is a mapping of groups"),
    ],
)
def test_what_cannot_be_extended_is_refused(write, text, message):
    write("there.yaml", "extends: mine.yaml")
    write("list.yaml", "- 1")
    with pytest.raises(ConfigError, match=message):
        load_recipe(write("mine.yaml", text))


def test_an_unknown_key_of_the_other_recipe_is_still_refused(write):
    write("base.yaml", "trainig: {}")
    with pytest.raises(ConfigError, match="trainig: unknown key"):
        load_recipe(write("mine.yaml", "extends: base.yaml"))


def test_a_chat_template_is_looked_for_here_and_then_beside_the_recipe(
    write, tmp_path, monkeypatch
):
    beside = write("below/t.jinja", "beside")
    write("below/base.yaml", "model: {chat_template: t.jinja}")
    path = write("mine.yaml", "extends: below/base.yaml")
    assert read_recipe(path)["model"]["chat_template"] == str(beside)
    here = write("elsewhere/t.jinja", "here")
    monkeypatch.chdir(here.parent)
    assert read_recipe(path)["model"]["chat_template"] == "t.jinja"
    write("below/base.yaml", "model: {chat_template: absent.jinja}")
    assert read_recipe(path)["model"]["chat_template"] == "absent.jinja"
