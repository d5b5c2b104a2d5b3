"""Look values up in a row, and put a prompt together from the fields that make it up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdpo.data.cells import NotText, cell, is_nothing, listed
from sdpo.data.messages import is_conversation, messages_of, plain_text
from sdpo.data.schema import Message
from sdpo.errors import DataError

Row = Mapping[str, Any]

_MISSING = object()
_DIGITS = 9
"""A place in a list has at most so many digits."""
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""These columns hold content that is part of the prompt without being text."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A rejection says why a row is not used: ``reason`` is counted, ``detail`` is for people."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class PromptFields:
    """Prompt fields are dotted paths of a prompt's parts; "" where a format has no such field.

    ``context`` is Alpaca's ``input``, appended to the instruction after a line break; ``history``
    is LLaMA-Factory's list of earlier (question, answer) turns.
    """

    prompt: str
    context: str = ""
    system: str = ""
    history: str = ""

    def paths(self) -> list[str]:
        """Return the paths that are set."""
        return [p for p in (self.prompt, self.context, self.system, self.history) if p]


def lookup(row: Row, path: str) -> Any:
    """Return the value at a dotted path, or None; a column whose own name has dots comes first.

    A number is a place in a list, from 0: ``responses.0.text``.
    """
    value = _find(row, path)
    return None if value is _MISSING else value


def has_path(row: Row, path: str) -> bool:
    """Return whether the row has something (be it null) at a dotted path."""
    return _find(row, path) is not _MISSING


def _find(row: Row, path: str) -> Any:
    if path in row:
        return row[path]
    if "." not in path:
        return _MISSING
    value: Any = row
    for part in path.split("."):
        if part.isdecimal() and not isinstance(value, dict):
            value = _entry(listed(value), part)
        else:
            value = value[part] if isinstance(value, dict) and part in value else _MISSING
        if value is _MISSING:
            return _MISSING
    return value


def _entry(value: object, part: str) -> Any:
    """Return the entry of a list at a number, from 0."""
    if not isinstance(value, list) or len(part) > _DIGITS or int(part) >= len(value):
        return _MISSING
    return value[int(part)]


def columns_of(row: Row) -> str:
    """Return the columns of a row for a message, those of nested objects as dotted paths."""
    names = []
    for name, value in row.items():
        nested = [f"{name}.{key}" for key in value] if isinstance(value, dict) else []
        names.extend(nested or [name])
    return ", ".join(names) or "none"


def refuse_media(row: Row) -> None:
    """Refuse a row that has images or sound beside its text."""
    for name in _MEDIA:
        if not is_nothing(row.get(name)):
            raise NotText(f"the row has `{name}`, which is not text")


def blank(text: str) -> bool:
    """Return whether there is nothing but white space."""
    return not text or text.isspace()


def all_blank(messages: list[Message]) -> bool:
    """Return whether no message says anything."""
    return all(blank(message.content) and not message.rest for message in messages)


def no_question(prompt: list[Message]) -> bool:
    """Return whether a prompt asks nothing: it is empty, or has only a system message."""
    return all(message.role == "system" or all_blank([message]) for message in prompt)


def unfinished(prompt: list[Message]) -> Rejection | None:
    """Return why a prompt ending in the assistant's own words is not used; None for any other."""
    if not prompt or prompt[-1].role != "assistant":
        return None
    return Rejection(
        "unfinished_prompt",
        "the prompt ends in a turn of the assistant, which the answer would go on with in a turn "
        "of its own: put that turn's text at the beginning of the answer, or end the prompt before "
        "it",
    )


def tool_turn(name: str, completion: list[Message]) -> Rejection | None:
    """Return why a completion with turns of a tool is not used; ``name`` says which one it is."""
    if all(message.role != "tool" for message in completion):
        return None
    return Rejection(
        "tool_turn_in_completion",
        f"{name} has a turn of a tool, whose words would be scored as the model's: end it before "
        "that turn; what the model says after it is the completion of a row of its own, with all "
        "turns before in its prompt",
    )


def chat_prompt(row: Row, fields: PromptFields) -> list[Message]:
    """Return the prompt as messages, without the ``system`` column (see :func:`with_system`).

    Raises:
        NotText: there is something besides text.
    """
    value = cell(lookup(row, fields.prompt), f"`{fields.prompt}`") if fields.prompt else None
    if is_conversation(value):
        messages = messages_of(value, f"`{fields.prompt}`", role="user")
    else:
        messages = [Message("user", _text_prompt(row, fields, value))]
    return _history(row, fields) + messages


def text_prompt(row: Row, fields: PromptFields) -> str:
    """Return the prompt as one text: a system text first, after it an empty line.

    Raises:
        NotText: there is something besides text.
        DataError: there are messages.
    """
    value = cell(lookup(row, fields.prompt), f"`{fields.prompt}`")
    refuse_conversation(value, fields.prompt)
    if fields.history:
        refuse_conversation(listed(lookup(row, fields.history)) or None, fields.history)
    text, system = _text_prompt(row, fields, value), system_text(row, fields)
    return f"{system}\n\n{text}" if text and system else text


def refuse_conversation(value: object, name: str) -> None:
    """Refuse messages in a ``text`` source."""
    if is_conversation(value):
        raise DataError(
            f"conversations without a chat template: `{name}` holds messages, and this source is "
            "encoded as plain text. Use a model whose tokenizer has a chat template, or give one "
            "with model.chat_template (and leave the source's format at `auto` or `chat`)"
        )


def system_text(row: Row, fields: PromptFields) -> str:
    """Return the text of the system column; "" where there is none or it is blank."""
    text = plain_text(lookup(row, fields.system), f"`{fields.system}`") if fields.system else ""
    return "" if blank(text) else text


def with_system(messages: list[Message], system: str) -> list[Message]:
    """Return ``messages`` led by the system text, unless they begin with a system message."""
    if system and not (messages and messages[0].role == "system"):
        return [Message("system", system), *messages]
    return messages


def _text_prompt(row: Row, fields: PromptFields, value: object) -> str:
    text = plain_text(value, f"`{fields.prompt}`")
    if not fields.context:
        return text
    context = plain_text(lookup(row, fields.context), f"`{fields.context}`")
    return "\n".join([part for part in (text, context) if part])


def _history(row: Row, fields: PromptFields) -> list[Message]:
    turns = listed(lookup(row, fields.history)) if fields.history else None
    messages = []
    for turn in turns or []:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise NotText(f"`{fields.history}` is not a list of (question, answer) turns")
        for role, text in zip(("user", "assistant"), turn, strict=True):
            messages.append(Message(role, plain_text(text, f"`{fields.history}`")))
    return messages
