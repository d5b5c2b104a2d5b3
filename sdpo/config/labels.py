"""Give what a person reads beside a setting in a form: its label with the unit, and its place.

A setting's label is its title, or comes from its name where it has none; its unit is declared there
too (:mod:`sdpo.config.annotations`).
"""

from typing import Any

from pydantic import BaseModel

from sdpo.config.annotations import NO_UNIT, unit_of

_WORDS = {
    "lr": "learning rate", "lora": "LoRA", "kl": "KL", "exo": "EXO", "dpo": "DPO", "cal": "Cal",
    "simpo": "SimPO", "adam": "Adam", "id": "ID", "max": "maximum", "min": "minimum",
}  # fmt: skip


def label_of(name: str, *, unit: str = "", title: str = "") -> str:
    """Return the label: ``Maximum length (tokens)`` for ``max_length``; ``title`` if it has one."""
    words = [_WORDS.get(word, word) for word in name.split("_")]
    text = title or " ".join(words)
    is_said = unit in ("", NO_UNIT) or f"({unit}" in text
    return f"{text[0].upper()}{text[1:]}" + ("" if is_said else f" ({unit})")


def labelled(schema: dict[str, Any], group: type[BaseModel]) -> None:
    """Give the JSON schema of a group of settings its labels, units and order."""
    schema["title"] = label_of(group.__name__.removesuffix("Config").lower())
    for position, (name, field) in enumerate(schema.get("properties", {}).items()):
        setting = group.model_fields[name]
        unit = unit_of(setting)
        field["title"] = label_of(name, unit=unit, title=setting.title or "")
        field["position"] = position
        _flatten(field)
        if unit:
            field["unit"] = unit


def _flatten(field: dict[str, Any]) -> None:
    """Show a setting that may be left empty as what it is otherwise, not as a choice of two."""
    options = field.get("anyOf", [])
    filled = [option for option in options if option != {"type": "null"}]
    if len(filled) == 1 and len(options) == 2:
        del field["anyOf"]
        field |= filled[0]
        if field.get("default", 0) is None:
            del field["default"]
