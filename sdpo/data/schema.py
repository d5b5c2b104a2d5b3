"""Define the one form that every preference pair takes, whatever file it came from."""

from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

Format = Literal["chat", "text"]


@dataclass(frozen=True, slots=True)
class Message:
    """A message is one turn of a conversation; in a ``text`` pair the only one, with role ``text``.

    ``rest`` is what it has besides, as a JSON object (:mod:`sdpo.data.message_rest`), or "".
    """

    role: str
    content: str
    rest: str = ""

    def strings(self) -> tuple[str, ...]:
        """Return all of it, for a digest; a message without a rest is its role and its content."""
        own = (self.role, self.content)
        return (*own, self.rest) if self.rest else own


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair is a normalised preference pair.

    ``row`` is the line (JSONL, CSV: from 1) or row (other files: from 0) it was read from.
    ``pair_id`` is 32 hex digits over the normalised text, so equal pairs have equal ids wherever
    they come from; ``prompt_key`` likewise over the prompt alone. ``template_inputs`` is what the
    chat template gets beside the messages (:mod:`sdpo.data.template_inputs`).
    """

    pair_id: str
    prompt_key: str
    source: str
    row: int
    format: Format
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    chosen_score: float | None = None
    rejected_score: float | None = None
    strata: dict[str, str] = field(default_factory=dict)
    template_inputs: str = ""


MESSAGES = pa.list_(
    pa.struct([("role", pa.string()), ("content", pa.string()), ("rest", pa.string())])
)
"""A column of messages has this type; files of older versions lack the last field."""

PAIRS_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_key", pa.string()),
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("row", pa.int64()),
        ("format", pa.dictionary(pa.int32(), pa.string())),
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("strata", pa.map_(pa.string(), pa.string())),
        ("chosen_chars", pa.int32()),
        ("rejected_chars", pa.int32()),
        ("prompt_chars", pa.int32()),
        ("template_inputs", pa.string()),
    ]
)
"""``pairs.parquet`` has these columns; files of older versions lack the last one."""
