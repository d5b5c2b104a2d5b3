"""Translate names of a precision: this project's short ones, torch's, and what people write."""

from typing import Literal, get_args

TorchName = Literal["float32", "bfloat16", "float16"]
TORCH_NAMES: tuple[TorchName, ...] = get_args(TorchName)

_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_OTHERS = {
    **{"float": "float32", "single": "float32", "f32": "float32", "full": "float32"},
    **{"half": "float16", "f16": "float16"},
}


def torch_name(name: str) -> TorchName | None:
    """Return torch's name of a precision for any of its names; None where it is none of them."""
    plain = name.strip().lower().removeprefix("torch.")
    found = (_SHORT | _OTHERS).get(plain, plain)
    return next((each for each in TORCH_NAMES if each == found), None)


def short_name(name: object) -> object:
    """Return ``name`` in short, as `bf16`, where it is a precision; else as it is."""
    if not isinstance(name, str):
        return name
    found = torch_name(name)
    return next((short for short, long in _SHORT.items() if long == found), name)
