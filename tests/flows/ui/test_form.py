"""The forms of the flows, as the UI gets them: an OpenAPI schema."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema

from flows.recipes.presets import presets
from flows.server.deploy import ALIGN, ALIGN_FULL, ENTRIES, Entry, schema_of
from sdpo.config import RunConfig
from sdpo.config.annotations import NO_UNIT

Field = dict[str, Any]


def resolved(schema: Field, field: Field) -> Field:
    """A field with what it refers to."""
    if "$ref" not in field:
        return field
    return schema["definitions"][field["$ref"].rsplit("/", maxsplit=1)[1]] | field


def fields(schema: Field) -> Iterator[tuple[str, Field]]:
    """Every field of the form with its dotted name, groups before what is in them."""

    def walk(where: str, group: Field) -> Iterator[tuple[str, Field]]:
        for name, given in group.get("properties", {}).items():
            field = resolved(schema, given)
            path = f"{where}{name}"
            yield path, field
            yield from walk(f"{path}.", field)
            if "items" in field:
                yield from walk(f"{path}.0.", resolved(schema, field["items"]))

    return walk("", schema)


def required(schema: Field) -> list[str]:
    """Dotted names of the fields without which the form cannot be sent."""
    found = list(schema.get("required", []))
    groups = schema["properties"].items()
    return found + [f"{name}.{each}" for name, g in groups for each in g.get("required", [])]


@pytest.fixture(params=ENTRIES, ids=lambda entry: entry.name)
def entry(request: pytest.FixtureRequest) -> Entry:
    """One of the deployments."""
    given: Entry = request.param
    return given


@pytest.fixture
def schema(entry: Entry) -> Field:
    """What the server is sent for a deployment."""
    assert entry.flow.parameters == parameter_schema(entry.flow)
    return schema_of(entry)


def test_every_field_has_a_label_a_description_and_a_default_or_says_what_empty_means(
    schema: Field,
) -> None:
    for path, field in fields(schema):
        assert re.match(r"[A-Z][^_]*$", field["title"]), path
        assert len(field["description"]) > 5, path
        is_override = path.startswith("steps.0.")
        empty = re.search(
            r"Empty: (as in `training`|as the recipe says|[^.]+)\.$", field["description"]
        )
        assert "default" in field or path in required(schema) or empty, path
        assert not is_override or field["description"].endswith("Empty: as in `training`."), path


REQUIRED = {
    "align": ["recipe"],
    "compare": ["recipe"],
    "extend": ["run", "sources"],
    "promote": ["run"],
    "replay": ["run"],
    "report": ["run"],
    "retrain": ["lineage", "data", "lineage.name"],
    "rollback": ["name"],
    "sweep": ["recipe", "over"],
    "verify": ["run"],
}


def test_what_is_required_is_required_and_nothing_else(entry: Entry, schema: Field) -> None:
    assert required(schema) == REQUIRED.get(entry.name, [])


def test_every_number_has_its_unit_in_the_label(schema: Field) -> None:
    for path, field in fields(schema):
        numbers = {field.get("type"), field.get("items", {}).get("type")} & {"number", "integer"}
        if numbers:
            unit = field.get("unit", "")
            assert unit == NO_UNIT or f"({unit}" in field["title"], path


def test_fields_are_in_order_and_flat(schema: Field) -> None:
    groups = [schema, *schema.get("definitions", {}).values()]
    for group in groups:
        positions = [field.get("position", 0) for field in group.get("properties", {}).values()]
        assert positions == sorted(positions)
    for path, field in fields(schema):
        assert not {"anyOf", "oneOf", "allOf", "discriminator"} & field.keys(), path
        if "enum" in field:
            assert field["type"] == "string", path
        if field.get("type") == "array" and not path.startswith("steps.0."):
            is_required = path in required(schema)
            assert is_required or isinstance(field["default"], list), path


def test_no_field_asks_for_a_secret(schema: Field) -> None:
    for path, _ in fields(schema):
        assert not re.search(
            r"password|secret|api_?key|credential|(auth|access|hub|hf)_?token", path
        ), path


def test_the_form_of_align_is_short_and_names_every_preset() -> None:
    schema = schema_of(ALIGN)
    assert next(iter(schema["properties"])) == "recipe"
    assert len(schema["properties"]) <= 10
    assert not schema["definitions"]
    for preset in presets():
        assert f"`{preset.name}`" in schema["properties"]["recipe"]["description"]


def test_the_form_of_align_full_is_the_recipe() -> None:
    schema = schema_of(ALIGN_FULL)
    defaults = RunConfig().model_dump()
    assert list(schema["properties"]) == list(RunConfig.model_fields)
    for name, field in schema["properties"].items():
        assert field["default"] == defaults[name], name
    by_path = dict(fields(schema))
    assert by_path["data.max_length"]["title"] == "Maximum length (tokens)"
    assert by_path["partition.fractions"]["default"] == [0.1667, 0.8333]
    assert by_path["training.objective"]["enum"][0] == "dpo"
