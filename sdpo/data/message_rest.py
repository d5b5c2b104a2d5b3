"""Read what a message has besides its role and its text: tool calls, reasoning, a tool's call.

A tool's call is the one that its turn answers. All are as TRL and the chat templates of
transformers have them, and are kept as the text of one JSON object, the names in the order given;
"" where there is nothing.
"""

import json
from collections.abc import Mapping
from typing import Any

from sdpo.data.cells import MOST_DEEP, NotText, is_deep, is_nothing, parsed, without_nulls

REASONING = "reasoning_content"
_REASONING_NAMES = (REASONING, "thinking", "reasoning")
_CALLS = ("tool_calls", "function_call")
_UNREAD = (
    *("refusal", "tool_plan", "images", "image", "videos", "video", "audios", "audio"),
    *("functions", "function_calls", "tools", "tool_responses", "documents", "context"),
)
"""These contents are not supported, though some templates print them."""

_OF_TOOLS = ("name", "tool_call_id")
"""With these a tool's turn names the call that it answers."""


def rest_of(message: Mapping[str, Any], role: str, name: str) -> str:
    """Return what ``message`` of a ``role`` has besides its text; ``name`` says where it is.

    Reasoning gets one name, whichever it has in the data, and a call gets one form: ``type`` and
    ``function``, with ``arguments`` as an object where they are the JSON text of one. What is null
    in an object is not given, as Parquet has every name in every object; in JSON text it stays.

    Raises:
        NotText: calls or reasoning are in a turn that is not the assistant's, or of another form.
    """
    rest: dict[str, Any] = {}
    for key, value in message.items():
        if role == "tool" and key in _OF_TOOLS and isinstance(value, str) and value:
            rest[key] = value
        elif key in _REASONING_NAMES and not _is_blank(value):
            if not isinstance(value, str):
                raise NotText(f"a message of {name} has `{key}`, which is not text")
            if rest.setdefault(REASONING, value) != value:
                raise NotText(f"a message of {name} has reasoning twice, and not the same")
        elif key in _CALLS and not is_nothing(value):
            if "tool_calls" in rest:
                raise NotText(f"a message of {name} has both `tool_calls` and `function_call`")
            rest["tool_calls"] = _calls(value, f"`{key}` of a message of {name}")
        elif key in _UNREAD and not is_nothing(value):
            raise NotText(f"a message of {name} has `{key}`, which is not read")
    alien = next((key for key in (REASONING, "tool_calls") if key in rest), "")
    if alien and role != "assistant":
        raise NotText(f"a message of {name} has `{alien}`, and its role is {role}")
    return _as_text(rest, name)


def calls_in_text(text: str, name: str) -> str:
    """Return the rest of a turn whose text is calls in JSON (LLaMA-Factory's ``function_call``).

    Raises:
        NotText: it is no list of calls.
    """
    return _as_text({"tool_calls": _calls(text, f"a turn `function_call` of {name}")}, name)


def _is_blank(value: object) -> bool:
    return is_nothing(value) or (isinstance(value, str) and value.isspace())


def _calls(value: object, where: str) -> list[dict[str, Any]]:
    read = parsed(value) if isinstance(value, str) else without_nulls(value)
    listed = read if isinstance(read, list) else [read]
    return [_call(parsed(c) if isinstance(c, str) else c, where) for c in listed]


def _call(value: object, where: str) -> dict[str, Any]:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(function, dict) or not _named(function):
        raise NotText(
            f"{where} is no list of calls, each an object with the `name` of a function: "
            '[{"type": "function", "function": {"name": ..., "arguments": {...}}}]'
        )
    if function is value:
        beside = {k: v for k, v in value.items() if k not in ("name", "arguments", "type")}
        value = {"type": "function", **beside}
        function = {k: v for k, v in function.items() if k in ("name", "arguments")}
    arguments = _arguments(function.get("arguments"))
    return {**value, "function": {**function, "arguments": arguments}}


def _named(function: dict[str, Any]) -> bool:
    return isinstance(function.get("name"), str) and bool(function["name"])


def _arguments(value: object) -> object:
    """Return arguments as an object, which templates print as JSON; text that spells none stays."""
    if value is None or value == "":
        return {}
    if not isinstance(value, str):
        return value
    try:
        read = json.loads(value, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        return value
    return read if isinstance(read, dict) else value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise ValueError("a name stands twice")
    return read


def _as_text(rest: Mapping[str, Any], name: str) -> str:
    if not rest:
        return ""
    if is_deep(rest):
        raise NotText(f"a tool call of {name} has values within values, {MOST_DEEP} deep and more")
    try:
        return json.dumps(rest, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError) as error:
        raise NotText(f"a tool call of {name} has a value that is none of JSON") from error
