"""Define the variables of the chat template that a recipe or a row may set, and those it may
not."""

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, JsonValue

_GIVEN = {
    **dict.fromkeys(("messages", "conversation", "conversations"), "they are the row's"),
    "tools": "they are the row's column `tools`",
    "documents": "documents beside the messages are not supported",
    "chat_template": "here it is `model.chat_template`",
    "strftime_now": "the date that templates see is the run's",
    "raise_exception": "it is a function of transformers",
    **dict.fromkeys(
        ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token"),
        "special tokens are the tokenizer's",
    ),
    "mask_token": "special tokens are the tokenizer's",
    **dict.fromkeys(
        (
            *("add_generation_prompt", "continue_final_message", "tokenize", "padding"),
            *("truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
            *("return_assistant_tokens_mask", "sanitize_control_tokens"),
        ),
        "it says how a template is applied, which is settled here",
    ),
}


def refused_variables(variables: Mapping[str, object]) -> str:
    """Return why some of the ``variables`` cannot be set; empty where all can."""
    for name in variables:
        if why := _GIVEN.get(name):
            return f"`{name}` is no variable that can be set: {why}"
    try:
        json.dumps(variables, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError):
        return (
            "a variable is a value of JSON: text, a finite number, true or false, a list or mapping"
        )
    return ""


def _checked(variables: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if why := refused_variables(variables):
        raise ValueError(why)
    return variables


Variables = Annotated[dict[str, JsonValue], AfterValidator(_checked)]
"""Variables are given by name, each with a value of JSON."""
