"""What a setting says of itself, and what derives from it."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from settings_values import group_within, identities, nested, other_values, settings

from sdpo.config import (
    Group,
    LaunchConfig,
    ModelConfig,
    PartitionConfig,
    ProbeConfig,
    ReserveConfig,
    RunConfig,
    SourceConfig,
    StepConfig,
    SupervisedConfig,
    TrainingConfig,
    settings_without_effect,
)
from sdpo.config.annotations import (
    InTraining,
    Node,
    NotIdentity,
    OfFormula,
    ReadIf,
    SpelledOut,
    Unit,
    counts,
    marked,
    markers,
    markers_of,
    unread,
)
from sdpo.config.load import make_config
from sdpo.identity.payloads import changed_settings, step_identity, supervised_identity
from sdpo.objectives import OBJECTIVES

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "identities.json").read_text(encoding="utf-8")
)
EVERY = dict(settings(RunConfig))


def with_value(group: BaseModel, path: str, value: Any) -> Any:
    """``group`` with another value at a dotted path, whatever its other settings rule out."""
    head, _, rest = path.partition(".")
    if not rest:
        return group.model_copy(update={head: value})
    if rest.startswith("0."):
        entry = {"steps": StepConfig, "sources": SourceConfig}[head]()
        return group.model_copy(update={head: [with_value(entry, rest[2:], value)]})
    return group.model_copy(update={head: with_value(getattr(group, head), rest, value)})


def fields_on(path: str) -> list[FieldInfo]:
    """The field at a path and those of the groups that it is in."""
    group: type[BaseModel] = RunConfig
    found: list[FieldInfo] = []
    for part in path.split("."):
        if part == "0":
            continue
        found.append(group.model_fields[part])
        group = group_within(found[-1].annotation) or group
    return found


def test_identities_and_warnings_are_byte_for_byte_those_that_runs_have_on_disk() -> None:
    for case in GOLDEN:
        config = make_config(case["values"])
        text = json.dumps(identities(config))
        if "payload" in case:
            assert text == json.dumps(case["payload"]), case["values"]
        assert hashlib.sha256(text.encode()).hexdigest() == case["digest"], case["values"]
        assert sorted(settings_without_effect(config)) == case.get("warnings", []), case["values"]


def test_what_is_compared_with_identities_on_disk_has_every_setting() -> None:
    def paths(values: dict[str, Any], where: str = "") -> set[str]:
        found = set()
        for name, value in values.items():
            entry = value[0] if isinstance(value, list) and value else value
            if isinstance(entry, dict) and f"{where}{name}" not in EVERY:
                is_list = isinstance(value, list)
                found |= paths(entry, f"{where}{name}.0." if is_list else f"{where}{name}.")
            else:
                found.add(f"{where}{name}")
        return found

    compared = set().union(*(paths(case["values"]) for case in GOLDEN))
    later = {path for path in EVERY if path not in compared}
    assert not later, "settings that came after tests/golden/identities.json"
    assert any(len(paths(case["values"])) > 100 for case in GOLDEN)


@pytest.mark.parametrize("path", EVERY)
def test_a_setting_bears_the_runs_identity_or_says_why_it_does_not(path: str) -> None:
    values = list(other_values(EVERY[path]))
    assert values, f"no other value of {path} is known: give settings_values one"
    reasons = [m.reason for f in fields_on(path) for m in markers(f, NotIdentity) if not m.of]
    plain = with_value(RunConfig(), path, EVERY[path].default)
    for value in values:
        changed = with_value(RunConfig(), path, value)
        same = changed_settings(changed) == changed_settings(plain)
        assert same == bool(reasons), (path, value)
    assert all(len(reason.split()) > 3 for reason in reasons), path


def step_payload(training: TrainingConfig) -> dict[str, Any]:
    return step_identity(training, launch=LaunchConfig(), model=ModelConfig(), inputs={})


def readers(name: str, field: FieldInfo) -> dict[str, Any]:
    """Settings with which a training setting is read."""
    found: dict[str, Any] = {}
    if next(markers(field, OfFormula), None):
        found["objective"] = next(o for o, facts in OBJECTIVES.items() if name in facts.settings)
    for where in markers(field, ReadIf):
        wanted = where.equal_to[0] if isinstance(where.equal_to, tuple) else where.equal_to
        found[where.settings[0]] = 4 if wanted is None else wanted
    return found


@pytest.mark.parametrize("name", TrainingConfig.model_fields)
def test_a_training_setting_bears_a_steps_identity_or_says_why_it_does_not(name: str) -> None:
    field = TrainingConfig.model_fields[name]
    base = TrainingConfig.model_validate(readers(name, field))
    same = [
        step_payload(base.model_copy(update={name: value})) == step_payload(base)
        for value in other_values(field)
    ]
    assert same
    assert not any(same) if counts(field, "step") else all(same)


@pytest.mark.parametrize("kind", [LaunchConfig, ModelConfig])
def test_a_setting_of_the_arithmetic_bears_a_steps_identity_or_says_why_not(
    kind: type[BaseModel],
) -> None:
    for name, field in kind.model_fields.items():
        for value in other_values(field):
            groups = {"launch": LaunchConfig(), "model": ModelConfig()}
            key = "launch" if kind is LaunchConfig else "model"
            changed = groups | {key: kind().model_copy(update={name: value})}
            one, other = (
                step_identity(TrainingConfig(), inputs={}, **each) for each in (groups, changed)
            )
            assert (one != other) == counts(field, "step"), (name, value)


def test_a_setting_of_the_supervised_stage_bears_its_identity_or_says_why_not() -> None:
    def payload(supervised: SupervisedConfig) -> dict[str, Any]:
        own = {name: getattr(supervised, name) for name in marked(SupervisedConfig, InTraining)}
        training = TrainingConfig().model_copy(update=own)
        groups = {"launch": LaunchConfig(), "model": ModelConfig()}
        return supervised_identity(supervised, training, inputs={}, **groups)

    for path, field in settings(SupervisedConfig):
        base = SupervisedConfig()
        if path in marked(SupervisedConfig, InTraining):
            base = base.model_copy(update=readers(path, field))
        for value in other_values(field):
            changed = with_value(base, path, value)
            name = path.split(".")[0]
            expected = counts(SupervisedConfig.model_fields[name], "supervised")
            assert (payload(changed) != payload(base)) == expected, (path, value)


def test_what_takes_the_place_of_a_training_setting_is_one() -> None:
    for name in marked(SupervisedConfig, InTraining):
        own, there = SupervisedConfig.model_fields[name], TrainingConfig.model_fields[name]
        assert own.annotation == there.annotation, name


def groups(group: type[BaseModel]) -> list[type[BaseModel]]:
    """A group and those within it."""
    inner = [group_within(field.annotation) for field in group.model_fields.values()]
    return [group, *(found for each in inner if each for found in groups(each))]


EVERY_GROUP = list(dict.fromkeys(groups(RunConfig)))
NAMES_OF_PLACES = ("path", "name", "name_or_path", "revision", "store", "folder", "reference_model")


def widened(group: type[BaseModel], name: str) -> type[BaseModel]:
    """``group`` with one more setting, as somebody would add it."""
    namespace = {
        "__annotations__": {name: str},
        "__module__": __name__,
        name: Field("", description="New."),
    }
    return type(group.__name__, (group,), namespace)


@pytest.mark.parametrize("name", NAMES_OF_PLACES)
def test_a_new_setting_counts_in_any_group_whatever_its_name(name: str) -> None:
    """Names that other groups have for places, and that are none of theirs here."""
    without = [group for group in EVERY_GROUP if name not in group.model_fields]
    assert len(without) >= len(EVERY_GROUP) - 3
    for group in without:
        check_a_new_setting_counts(widened(group, name), name)


def check_a_new_setting_counts(kind: type[BaseModel], name: str) -> None:
    assert changed_settings(kind()) == {}
    assert changed_settings(kind.model_validate({name: "x"})) == {name: "x"}
    for node in get_args(Node):
        told = changed_settings(kind(), node)
        assert changed_settings(kind.model_validate({name: "x"}), node) == told | {name: "x"}


@pytest.mark.parametrize("name", NAMES_OF_PLACES)
def test_a_new_setting_counts_in_the_identities_of_nodes_and_is_left_out_at_its_default(
    name: str,
) -> None:
    def all_of(training: BaseModel, launch: BaseModel, model: BaseModel, own: BaseModel) -> Any:
        arithmetic = {"launch": launch, "model": model, "inputs": {}}
        step: Any = step_identity(training, **arithmetic)  # type: ignore[arg-type]
        return step, supervised_identity(own, training, **arithmetic)  # type: ignore[arg-type]

    kinds = [
        widened(each, name) if name not in each.model_fields else each
        for each in (TrainingConfig, LaunchConfig, ModelConfig, SupervisedConfig)
    ]
    plain = [kind() for kind in kinds]
    step, supervised = all_of(*plain)
    assert (step, supervised) == all_of(
        TrainingConfig(), LaunchConfig(), ModelConfig(), SupervisedConfig()
    )
    for position, kind in enumerate(kinds):
        if kind.__module__ != __name__:
            continue
        given = [*plain]
        given[position] = kind.model_validate({name: "x"})
        other_step, other_supervised = all_of(*given)
        assert other_supervised != supervised, kind
        assert (other_step != step) == (position < 3), kind


@pytest.mark.parametrize(
    ("group", "node"),
    [
        (PartitionConfig, "plan"),
        (ReserveConfig, "reserve"),
        (ProbeConfig, "probe"),
        (ProbeConfig, "kl"),
    ],
)
def test_what_these_nodes_were_made_with_is_told_in_full(
    group: type[BaseModel], node: Node
) -> None:
    told = changed_settings(group(), node)
    assert told == group().model_dump(include=set(told))
    expected = {
        "plan": ["order", "groups", "fractions", "strata", "seed"],
        "reserve": ["fraction", "min_pairs", "max_fraction", "key"],
        "probe": ["max_pairs", "completions", "completion_tokens", "seed"],
        "kl": ["seed"],
    }
    assert list(told) == expected[node]


def test_a_setting_stops_counting_by_its_own_word_alone() -> None:
    class Marked(Group):
        name: str = Field("", description="Counts.")
        place: Annotated[str, NotIdentity("where a thing is changes nothing")] = Field(
            "", description="Does not."
        )
        kept: Annotated[int, SpelledOut(of=("probe",))] = Field(1, description="Told always.")
        early: Annotated[int, NotIdentity("not of pairs", of=("data",))] = Field(
            0, description="Of all but one."
        )

    group = Marked(name="n", place="p", early=2)
    assert changed_settings(group) == {"name": "n", "early": 2}
    assert changed_settings(group, "data") == {"name": "n"}
    assert changed_settings(group, "probe") == {"name": "n", "kept": 1, "early": 2}


def test_a_step_says_of_a_setting_what_training_does() -> None:
    for name, field in TrainingConfig.model_fields.items():
        own = StepConfig.model_fields[name]
        assert markers_of(own) == markers_of(field), name
        assert own.title == field.title, name


@pytest.mark.parametrize("group", EVERY_GROUP, ids=lambda group: group.__name__)
def test_markers_name_what_there_is(group: type[BaseModel]) -> None:
    for name, field in group.model_fields.items():
        assert all(marker.symbol for marker in markers(field, OfFormula)), name
        for kind in (NotIdentity, SpelledOut):
            assert all(set(marker.of) <= set(get_args(Node)) for marker in markers(field, kind))
        for marker in markers(field, ReadIf):
            assert all(hasattr(group(), setting) for setting in marker.settings), name


@pytest.mark.parametrize("path", EVERY)
def test_every_number_has_its_unit_on_itself(path: str) -> None:
    def kinds(annotation: Any) -> set[Any]:
        return {annotation}.union(*(kinds(each) for each in get_args(annotation)))

    is_number = bool({int, float} & kinds(EVERY[path].annotation))
    assert (next(markers(EVERY[path], Unit), None) is not None) == is_number


def test_what_is_unread_says_why() -> None:
    class Marked(Group):
        mode: str = Field("a", description="Mode.")
        first: int = Field(0, description="First.")
        second: int = Field(0, description="Second.")
        of_mode: Annotated[
            int,
            ReadIf(settings=("mode",), equal_to="b", otherwise=" in mode {value}, which has none"),
        ] = Field(0, description="Of a mode.")
        of_any: Annotated[int, ReadIf(settings=("first", "second"), otherwise=": both are 0")] = (
            Field(0, description="Of any.")
        )

    why = {"of_mode": " in mode a, which has none", "of_any": ": both are 0"}
    assert unread(Marked()) == why
    assert unread(Marked(second=1)) == {"of_mode": why["of_mode"]}
    assert unread(Marked(mode="b", first=1)) == {}


def test_a_step_takes_the_bounds_of_training_and_not_its_markers_as_bounds() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        StepConfig.model_validate({"beta": 0})
    assert make_config(nested("steps.0.beta", 0.5)).training_of(1).beta == 0.5
