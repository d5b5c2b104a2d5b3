"""The forms of the flows, as the UI gets them: an OpenAPI schema."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows.align import align
from flows.server.deploy import ENTRIES
from sdpo.config import RunConfig
from sdpo.config.annotations import NO_UNIT

Field = dict[str, Any]


def schema_of(flow: Flow[..., object]) -> Field:
    """What the server is sent for a flow."""
    assert flow.parameters == parameter_schema(flow)
    schema: Field = parameter_schema(flow).model_dump_for_openapi()
    return schema


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


@pytest.fixture(params=ENTRIES, ids=lambda entry: entry.name)
def schema(request: pytest.FixtureRequest) -> Field:
    """The schema of one deployment's flow."""
    return schema_of(request.param.flow)


def test_every_field_has_a_label_a_description_and_a_default(schema: Field) -> None:
    for path, field in fields(schema):
        assert re.match(r"[A-Z][^_]*$", field["title"]), path
        assert len(field["description"]) > 5, path
        is_override = path.startswith("steps.0.")
        assert is_override or "default" in field, path
        assert not is_override or field["description"].endswith("Empty: as in `training`."), path
    assert not schema.get("required")


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
            assert isinstance(field["default"], list), path


def test_no_field_asks_for_a_secret(schema: Field) -> None:
    for path, _ in fields(schema):
        assert not re.search(
            r"password|secret|api_?key|credential|(auth|access|hub|hf)_?token", path
        ), path


def test_the_form_of_align_is_the_recipe() -> None:
    schema = schema_of(align)
    defaults = RunConfig().model_dump()
    assert list(schema["properties"]) == list(RunConfig.model_fields)
    for name, field in schema["properties"].items():
        assert field["default"] == defaults[name], name
    by_path = dict(fields(schema))
    assert by_path["data.max_length"]["title"] == "Maximum length (tokens)"
    assert by_path["partition.fractions"]["default"] == [0.1667, 0.8333]
    assert by_path["training.objective"]["enum"][0] == "dpo"
