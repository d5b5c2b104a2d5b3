"""What a generated source cannot be is refused from the recipe alone, with what to do."""

from typing import Any

import pytest

from sdpo.config.load import make_config
from sdpo.errors import ConfigError

GIVEN = {"name": "a", "path": "a.jsonl"}
RULE = {"rule": "length"}
GENERATE = {"prompts_of": "a", "judge": RULE}


def made(generate: dict[str, Any], *given: dict[str, Any], **values: Any) -> Any:
    source = {"name": "r", "generate": generate}
    return make_config({"data": {"sources": [*(given or [GIVEN]), source]}, **values})


def test_a_generated_source_is_none_that_is_read() -> None:
    data = made(GENERATE).data
    assert [source.name for source in data.given] == ["a"]
    assert [source.name for source in data.generated] == ["r"]
    assert data.as_given.sources == data.given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts_of": ""}, "generate names no prompts: set `prompts`"),
        ({"prompts": "p.jsonl"}, "`prompts` and `prompts_of`: leave out one"),
        ({"prompts_of": "b"}, "prompts_of `b` is no source with pairs .*there are a"),
        ({"prompts_of": "r"}, "prompts_of `r` is no source with pairs"),
        ({"judge": {}}, "judge names none: set `rule`"),
        ({"judge": {**RULE, "implicit": True}}, "has `rule` and `implicit`"),
        ({"judge": {**RULE, "reward_model": "m"}}, "a judge is one thing"),
        ({"engine": "openai"}, "`openai` needs the command of a server"),
        ({"engine": "openai", "serve": ["vllm", "{port}"]}, "serve names no {model}, the folder"),
        ({"engine": "openai", "serve": ["vllm", "{model}"]}, "serve names no {port}, the port"),
        ({"rounds": 2}, "rounds 2 with per_round 0: .* Set per_round, or `again: true`"),
        ({"max_new_tokens": 1024}, r"leaves no room .* data.max_length \(1024\)"),
        ({"n": 1}, "generate.n"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made({**GENERATE, **change})


def test_settings_of_a_server_without_one_have_no_effect() -> None:
    from sdpo.config.effects import settings_without_effect

    lines = settings_without_effect(made({**GENERATE, "parallel": 4, "max_minutes": 3}))
    assert lines == ["data.sources.1.generate.parallel has no effect on engine `transformers`"]


def test_a_source_is_read_or_generated() -> None:
    sources = [GIVEN, {"name": "r", "path": "b.jsonl", "generate": GENERATE}]
    with pytest.raises(ConfigError, match="this one is generated: leave out `path`"):
        make_config({"data": {"sources": sources}})
    with pytest.raises(ConfigError, match="name is empty"):
        make_config({"data": {"sources": [GIVEN, {"generate": GENERATE}]}})


def test_there_is_something_to_measure_on_and_to_train_on() -> None:
    alone = {"name": "r", "generate": {"prompts": "p.jsonl", "judge": RULE}}
    with pytest.raises(ConfigError, match="add a source with a path"):
        make_config({"data": {"sources": [alone]}})
    with pytest.raises(ConfigError, match="no source has `train`"):
        make_config({"data": {"sources": [{**GIVEN, "train": False}]}})
    held = {**GIVEN, "train": False}
    assert made(GENERATE, held).data.generated
    with pytest.raises(ConfigError, match="the model before it is S itself"):
        made({"prompts_of": "a", "judge": {"implicit": True}}, held)


def test_a_generated_source_is_in_no_group() -> None:
    with pytest.raises(ConfigError, match="groups names r, whose pairs"):
        made(GENERATE, partition={"groups": [["a", "r"]]})
