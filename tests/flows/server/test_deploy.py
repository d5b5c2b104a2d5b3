"""What the server makes of the parameters of deployments and schedules, without a server."""

import json
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.replay import replay
from flows.retrain import ApprovalSettings
from flows.server.deploy import ENTRIES, Entry, schema_of
from sdpo.config import StoreConfig
from sdpo.config.load import checked, make_config
from sdpo.errors import ConfigError

OLD = json.loads(
    (Path(__file__).resolve().parents[2] / "golden" / "parameters_0.1.json").read_text()
)
"""All parameters of a schedule as version 0.1 wrote them from its form, by flow."""


def accept(flow: str, parameters: dict[str, Any]) -> None:
    """Look at parameters as the server does: at those of a deployment, then at those of a run."""
    (entry,) = [entry for entry in ENTRIES if entry.name == flow]
    for is_of_the_deployment in (True, False):
        validate(
            parameters,
            schema_of(entry),
            raise_on_error=True,
            preprocess=True,
            ignore_required=is_of_the_deployment,
        )


NOW = {"align": "align-full"}
"""The deployments whose parameters are of another one now."""


@pytest.mark.parametrize("flow", sorted(OLD))
def test_a_schedule_of_before_is_still_accepted(flow: str) -> None:
    accept(NOW.get(flow, flow), OLD[flow])


def test_a_run_of_before_means_the_same_settings() -> None:
    assert make_config(OLD["align"]) == make_config({"name": OLD["align"]["name"]})


def test_a_replay_of_before_means_the_same_and_every_parameter_of_it_is_still_there() -> None:
    old = OLD["replay"]
    here = signature(replay.fn).parameters
    assert {name: here[name].default for name in old if name != "store"} == {
        name: value for name, value in old.items() if name != "store"
    }
    assert checked(StoreConfig, old["store"], name="store") == StoreConfig()


NAMED: dict[str, Any] = {"lineage": {"name": "chat"}, "data": {"sources": ["a.jsonl"]}}


def test_a_deployment_itself_can_have_a_person_asked() -> None:
    accept("retrain", NAMED | {"approval": {"required": True, "timeout_minutes": 60}})


def test_a_retraining_may_have_prompts_in_place_of_sources() -> None:
    accept("retrain", {"lineage": {"name": "chat"}, "data": {"prompts": "prompts.jsonl"}})


@pytest.mark.parametrize("left_out", ["lineage", "data"])
@pytest.mark.parametrize("given", [{}, None], ids=["an empty group", "no group"])
def test_a_retraining_of_nothing_is_refused_before_anything_starts(
    left_out: str, given: dict[str, Any] | None
) -> None:
    sent = {name: value for name, value in NAMED.items() if name != left_out}
    with pytest.raises(ValidationError):
        accept("retrain", sent if given is None else sent | {left_out: given})


@pytest.mark.parametrize(
    "missing", [{}, {"recipe": ""}, {"recipe": "  "}, {"recipe": None}], ids=str
)
def test_an_empty_recipe_is_refused_before_anything_starts(missing: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        accept("align", missing)


SHORT = [e for e in ENTRIES if schema_of(e).get("required") and e.name != "retrain"]


@pytest.mark.parametrize("entry", SHORT, ids=lambda entry: entry.name)
def test_the_empty_form_is_refused_before_anything_starts(entry: Entry) -> None:
    schema = schema_of(entry)
    sent = {
        name: field["default"] for name, field in schema["properties"].items() if "default" in field
    }
    for name in schema["required"]:
        with pytest.raises(ValidationError):
            accept(entry.name, sent)
        if entry.name != "replay":  # parameters of version 0.1 have an empty one
            empty = [] if name in ("sources", "over") else " "
            with pytest.raises(ValidationError):
                accept(entry.name, sent | {name: empty})
        sent[name] = ["a.jsonl"] if name in ("sources", "over") else "tiny"
    accept(entry.name, sent)


@pytest.mark.parametrize(
    ("field", "value", "is_good"),
    [
        *(("beta", value, value not in (0, "much")) for value in (0.2, None, 0, "much")),
        *(("limit", value, value not in (-1, 1.5)) for value in (8, 0, None, -1, 1.5)),
        *(("objective", value, value != "ppo") for value in ("ipo", "ppo")),
        *(("sources", value, value != "a.jsonl") for value in (["a.jsonl"], [], "a.jsonl")),
    ],
)
def test_a_field_that_is_left_empty_is_none_and_one_that_cannot_be_is_refused(
    field: str, value: Any, is_good: bool
) -> None:
    given = {"recipe": "demo", field: value}
    if is_good:
        accept("align", given)
    else:
        with pytest.raises(ValidationError):
            accept("align", given)


def test_what_is_no_setting_is_refused_by_the_server_or_by_the_flow() -> None:
    with pytest.raises(ValidationError):
        accept("retrain", {"lineage": {"nmae": "chat"}})
    accept("retrain", NAMED | {"approval": {"requird": True}})
    with pytest.raises(ConfigError, match="did you mean `required`"):
        checked(ApprovalSettings, {"requird": True}, name="approval")
    with pytest.raises(ValidationError):
        accept("retrain", {"approval": {"required": "perhaps"}})
