"""Turn the values that data files hold (text, messages, transcripts) into messages.

Text is not changed. What is not text (images) raises :class:`~sdpo.data.cells.NotText`;
:mod:`sdpo.data.formats` decides which column means what.
"""

import json
import re

from sdpo.data.cells import NotText
from sdpo.data.message_rest import REASONING, calls_in_text, rest_of
from sdpo.data.schema import Message

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
_CALL = "function_call"
"""LLaMA-Factory has this role for a turn whose text is a call of tools."""

_THOUGHT = re.compile(r"\s*<(think|thinking|thought|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
"""Reasoning in front of an answer's text matches this."""

_ASSISTANT_MARK = "\n\nAssistant:"
_MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_TRANSCRIPT = re.compile(r"\s*Human:")
_OPEN_END = re.compile(r"\n\nAssistant:\s*\Z")
_OPENING = re.compile(r"\A\s*Assistant:")
_ROLE_MARKS = [
    (
        r"(?:### ?|\*\*|<\|?|\[)?(?:Human|User|USER)",
        r"(?:### ?|\*\*|<\|?|\[)?(?:Assistant|ASSISTANT)",
    ),
    (r"### ?(?:Instruction|Input|Question)", r"### ?(?:Response|Output|Answer)"),
]
"""Alpaca writes such marks, and many write transcripts with them."""

_LIKE_TRANSCRIPT = [
    tuple(re.compile(rf"^[ \t]*{name}(?:\*\*)?[:>|\]]", re.MULTILINE) for name in marks)
    for marks in _ROLE_MARKS
]
_VICUNA = re.compile(r"(?:^|[\s.])USER: .*\sASSISTANT:", re.DOTALL)
"""Vicuna has both marks in one line."""


class UnfinishedTranscript(NotText):
    """The prompt is a transcript that ends within the assistant's own words."""

    reason = "unfinished_transcript"


def is_conversation(value: object) -> bool:
    """Return whether ``value`` is a message or a list of messages rather than text."""
    return isinstance(value, list | dict)


def plain_text(value: object, name: str) -> str:
    """Return ``value`` as text: itself; a list of text parts joined; "" for what is missing.

    Raises:
        NotText: it is anything else.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join([_part_text(part, name) for part in value])
    raise NotText(f"{name} is {_kind(value)}")


def _part_text(part: object, name: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        kind = part.get("type", "text")
        if kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        raise NotText(f"{name} holds a part of type `{kind}`")
    raise NotText(f"{name} holds {_kind(part)}")


def _kind(value: object) -> str:
    names = {bool: "true/false", int: "a number", float: "a number", bytes: "binary data"}
    return names.get(type(value), f"a {type(value).__name__}")


def messages_of(value: object, name: str, *, role: str) -> list[Message]:
    """Return the messages of a column: a list of them, a single one, or text as a turn of ``role``.

    Messages are ``role``/``content`` or ``from``/``value`` objects, with tool calls and reasoning
    as :func:`~sdpo.data.message_rest.rest_of` reads them.

    Raises:
        NotText: content is not text, a role is unknown, or something is no tool call.
    """
    if isinstance(value, list):
        return [_message(item, name) for item in value]
    if isinstance(value, dict):
        return [_message(value, name)]
    return [Message(role, plain_text(value, name))]


def _message(item: object, name: str) -> Message:
    if not isinstance(item, dict):
        raise NotText(f"{name} holds {_kind(item)} where a message is expected")
    content = item["content"] if "content" in item else item.get("value")
    text = plain_text(content, f"a message of {name}")
    said = item.get("role", item.get("from"))
    if said == _CALL:
        return Message("assistant", "", calls_in_text(text, name))
    role = _role(said, name)
    rest = rest_of(item, role, name)
    if rest and REASONING in json.loads(rest) and _THOUGHT.match(text):
        raise NotText(
            f"a message of {name} has reasoning twice: in its text, and in a field of its own: "
            "take one out"
        )
    return Message(role, text, rest)


def _role(value: object, name: str) -> str:
    known = _ROLES.get(value) if isinstance(value, str) else None
    if known:
        return known
    lower = str(value).strip().lower()
    if lower not in _ROLES:
        raise NotText(f"{name} holds a message of unknown role `{value}`")
    return _ROLES[lower]


def is_message(value: object) -> bool:
    """Return whether ``value`` looks like one message."""
    return isinstance(value, dict) and ("role" in value or "from" in value)


def split_dialogues(chosen: list[Message], rejected: list[Message]) -> int | None:
    """Return the length of the prompt that two whole dialogues share; None where they share none.

    It is the longest common beginning after which both go on with an assistant's turn.
    """
    best = None
    for index, (left, right) in enumerate(zip(chosen, rejected, strict=False)):
        if left.role == right.role == "assistant":
            best = index
        if left != right:
            break
    return best


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Split two whole texts into prompt, chosen and rejected.

    A ``Human:``/``Assistant:`` transcript is split after the last assistant mark that both sides
    share. Any other text is split as TRL does: after the longest common beginning, a space at its
    end going to the answers.
    """
    shared = common_length(chosen, rejected)
    if _TRANSCRIPT.match(chosen):
        mark = chosen.rfind(_ASSISTANT_MARK, 0, shared)
        if mark >= 0:
            shared = mark + len(_ASSISTANT_MARK)
            return chosen[:shared], chosen[shared:], rejected[shared:]
    if shared and chosen[shared - 1] == " ":
        shared -= 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def common_length(left: str, right: str) -> int:
    """Return the length of the longest common beginning; bisected, as slices compare fast."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def is_transcript(prompt: str) -> bool:
    """Return whether ``prompt`` is a transcript: turns of ``Human:`` and ``Assistant:``.

    The human's comes first, and an empty line is before each later one. Where single lines separate
    them, it is none.
    """
    if not _TRANSCRIPT.match(prompt):
        return False
    return len(_MARK.findall(prompt)) > 1 or not like_transcript(prompt)


def like_transcript(prompt: str) -> bool:
    """Return whether a text that is no known transcript has marks of both roles.

    They are at lines' beginnings, or Vicuna's in one line.
    """
    return bool(_VICUNA.search(prompt)) or any(
        all(mark.search(prompt) for mark in marks) for marks in _LIKE_TRANSCRIPT
    )


def whole_transcripts(chosen: str, rejected: str) -> bool:
    """Return whether both sides are transcripts that begin alike, up to an assistant's turn."""
    if not (is_transcript(chosen) and is_transcript(rejected)):
        return False
    return chosen.rfind(_ASSISTANT_MARK, 0, common_length(chosen, rejected)) >= 0


def transcript_prompt(prompt: str) -> list[Message]:
    """Return a transcript's turns, without the mark at its end where the assistant is to go on.

    Raises:
        UnfinishedTranscript: it ends in the assistant's own words.
    """
    turns = _turns(_OPEN_END.sub("", prompt))
    if turns[-1].role == "assistant":
        raise UnfinishedTranscript(
            "the prompt is a transcript that ends in the assistant's own words, which the answer "
            "would go on with in a turn of its own: end it after the human's words, or with "
            "`\\n\\nAssistant:`"
        )
    return turns


def transcript_answer(answer: str) -> list[Message]:
    """Return the turns that follow the human's in a transcript, the assistant's first."""
    return _turns(f"{_ASSISTANT_MARK}{_OPENING.sub('', answer)}")


def _turns(text: str) -> list[Message]:
    pieces = _MARK.split(text)
    # pieces: what is before the first mark (nothing), then mark and text in turn; the one
    # space after a mark belongs to the mark.
    return [
        Message(_ROLES[mark.lower()], content.removeprefix(" "))
        for mark, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
