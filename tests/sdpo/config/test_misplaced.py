"""A value where a group or a list of settings stands: the message says what to write, and that
works."""

import re
from typing import Any

import pytest
import yaml

from sdpo.config import RunConfig
from sdpo.config.load import make_config
from sdpo.errors import ConfigError


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("data.sources", ["pairs.jsonl"], "{path: pairs.jsonl}"),
        ("data.sources", "pairs.jsonl", "[{path: pairs.jsonl}]"),
        ("data.sources", {"path": "pairs.jsonl"}, "[{path: pairs.jsonl}]"),
        ("data.sources", ["a: b"], "{path: 'a: b'}"),
        ("model", "models/tiny", "{name_or_path: models/tiny}"),
        ("partition", "natural", "{strategy: natural}"),
        ("supervised", True, "{enabled: true}"),
        ("supervised", "talk.jsonl", "{path: talk.jsonl}"),
        ("launch", "cpu", "{device: cpu}"),
        ("store", "elsewhere", "{runs_dir: elsewhere}"),
        ("steps", 2, "[{}, {}]"),
        ("steps", {"beta": 0.2}, "[{beta: 0.2}]"),
        ("tracking.tools", "wandb", "[wandb]"),
    ],
)
def test_the_remedy_is_what_is_accepted(setting: str, value: Any, remedy: str) -> None:
    group, _, key = setting.partition(".")
    with pytest.raises(ConfigError) as caught:
        make_config({group: {key: value} if key else value})
    message = str(caught.value)
    assert re.match(rf"{re.escape(setting)}(\.0)?: (a group of settings|a list) stands", message)
    assert "dictionary" not in message
    assert message.endswith(f"write {remedy}")
    written = yaml.safe_load(remedy)
    if ".0:" in message:
        written = [written]
    make_config({group: {key: written} if key else written})


@pytest.mark.parametrize("setting", [n for n in RunConfig.model_fields if n != "name"])
@pytest.mark.parametrize("value", [3, 0.5, True, None, ["x"], "x" * 5000, [[[]]]])
def test_no_message_speaks_of_classes_or_dictionaries(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({setting: value})
    assert not re.search(r"dictionary|instance of|Config\b|&id", str(caught.value))
    assert len(str(caught.value)) < 1000


def test_a_colon_without_a_space_is_told() -> None:
    with pytest.raises(ConfigError, match=r"a space after the colon: `path: pairs\.jsonl`"):
        make_config({}, overrides=["data.sources=[{path:pairs.jsonl}]"])
