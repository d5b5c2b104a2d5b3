"""Note what a person should know of a row that is used all the same, with the remedy."""

from collections.abc import Collection, Sequence
from typing import Literal

from sdpo.data.cells import is_json_text, is_nothing
from sdpo.data.messages import like_transcript
from sdpo.data.prompts import Row, lookup
from sdpo.data.schema import Message

Note = Literal["like_transcript", "prompt_repeated", "json_text", "prompt_left_out", "like_missing"]

NOTES: dict[Note, str] = {
    "like_transcript": "the prompt looks like a transcript of a user and an assistant and is one "
    "message of the user: give it as messages, or as `\\n\\nHuman:`/`\\n\\nAssistant:` turns "
    "from its beginning",
    "prompt_repeated": "both sides begin with the whole prompt, which then stands there twice: "
    "take it out of the sides, or out of the prompt",
    "json_text": "the prompt and both sides are JSON, and are used as the text that they are: for "
    "what stands within them, convert the file first",
    "prompt_left_out": "a column that is not read may be a part of the prompt (`system_prompt`, "
    "`context`, `history` and the like, see the unused columns): name a system text in "
    "`columns.system`, and put anything else into the prompt",
    "like_missing": "a prompt or an answer is `NA`, `NaN` or the like, as programs write what is "
    "missing, and is used as the text that it is: take those rows out",
}

_MISSING = {"NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "undefined"}
_OF_PROMPTS = (
    *("system", "system_prompt", "system_message", "system_instruction", "developer"),
    *("context", "contexts", "document", "documents", "passage", "passages", "input", "history"),
    *("conversation_history", "dialogue_history", "chat_history", "previous_turns"),
)
"""These columns say something to the model, where data has them beside a prompt."""


def notes_of(
    row: Row,
    *,
    prompt: str,
    sides: Sequence[str],
    used: Collection[str],
    turns: Sequence[Message],
    is_chat: bool,
) -> list[Note]:
    """Return the notes on ``row``, each once.

    ``prompt`` and ``sides`` are the paths that they are read from ("" for a prompt within the
    sides), ``used`` all columns that are read, and ``turns`` the prompt as it was made of them.
    """
    found: list[Note] = []
    asked = lookup(row, prompt) if prompt else None
    texts = [side for side in (lookup(row, path) for path in sides) if isinstance(side, str)]
    both_texts = len(texts) == 2
    is_text = isinstance(asked, str) or (not prompt and both_texts)
    if is_text and is_chat and any(like_transcript(m.content) for m in turns if m.role == "user"):
        found.append("like_transcript")
    if isinstance(asked, str) and both_texts:
        start = asked.strip()
        if start and is_chat and all(text.lstrip().startswith(start) for text in texts):
            found.append("prompt_repeated")
        if all(is_json_text(text) for text in (asked, *texts)):
            found.append("json_text")
    if any(text.strip() in _MISSING for text in (asked, *texts) if isinstance(text, str)):
        found.append("like_missing")
    if any(not is_nothing(row.get(name)) for name in _OF_PROMPTS if name not in used):
        found.append("prompt_left_out")
    return found
