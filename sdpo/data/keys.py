"""Make the keys by which pairs and prompts are recognised as the same, wherever they come from.

Text is compared after Unicode NFC and with every run of white space as one space; the keys are
128-bit BLAKE2b. They depend on the messages alone: never on the source, the row or the
scores.
The text that is trained on is never changed.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from sdpo.data.schema import Message

KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class PairKeys:
    """A pair's keys have 16 bytes each; ``swapped`` is that of the pair with sides exchanged."""

    prompt: bytes
    pair: bytes
    swapped: bytes


def squash(text: str) -> str:
    """Return ``text`` in NFC, every run of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def messages_key(messages: Sequence[Message], *, text_role: str) -> bytes:
    """Return the key of a list of messages; plain text counts as a turn of ``text_role``.

    So a prompt has one key whether its source is encoded as text or as chat, and one that is
    reserved in one source is reserved in all.

    Raises:
        UnicodeEncodeError: there is half of a surrogate pair, which is no text.
    """
    # Squashed text holds neither \x1e nor \x1f (both are white space), so the join is unambiguous.
    turns = [
        f"{text_role if m.role == 'text' else m.role}\x1f{squash(m.content)}"
        + (f"\x1f{squash(m.rest)}" if m.rest else "")
        for m in messages
    ]
    return _hash("\x1e".join(turns).encode())


def pair_keys(
    prompt: Sequence[Message],
    *,
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    template_inputs: str = "",
) -> PairKeys:
    """Return all keys of a pair.

    What its template gets beside the messages is part of the pair's key but not of the prompt's:
    the same question asked otherwise is reserved with it.
    """
    prompt_part = messages_key(prompt, text_role="user")
    chosen_part = messages_key(chosen, text_role="assistant")
    rejected_part = messages_key(rejected, text_role="assistant")
    inputs_part = _inputs_part(template_inputs)
    return PairKeys(
        prompt_part,
        _hash(prompt_part + chosen_part + rejected_part + inputs_part),
        _hash(prompt_part + rejected_part + chosen_part + inputs_part),
    )


def _inputs_part(template_inputs: str) -> bytes:
    return _hash(template_inputs.encode()) if template_inputs else b""


def pair_id(
    prompt: Sequence[Message],
    *,
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    template_inputs: str = "",
) -> str:
    """Return the identity of a pair: 32 hex digits."""
    keys = pair_keys(prompt, chosen=chosen, rejected=rejected, template_inputs=template_inputs)
    return keys.pair.hex()


def prompt_key(prompt: Sequence[Message]) -> str:
    """Return the identity of a prompt: 32 hex digits."""
    return messages_key(prompt, text_role="user").hex()


def example_key(
    prompt_part: bytes, completion: Sequence[Message], template_inputs: str = ""
) -> bytes:
    """Return the key of a supervised example, from its prompt's key and its completion."""
    completion_part = messages_key(completion, text_role="assistant")
    return _hash(prompt_part + completion_part + _inputs_part(template_inputs))


def draw_key(seed: int, key: bytes) -> int:
    """Return a 64-bit number by which ``seed`` orders pairs, whatever order they come in."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, key=str(seed).encode()).digest())


def content_digest(strings: Sequence[str]) -> bytes:
    """Return 16 bytes over the exact strings, unambiguous: their lengths come first.

    Raises:
        UnicodeEncodeError: there is half of a surrogate pair, which is no text.
    """
    lengths = ",".join([str(len(s)) for s in strings])
    return _hash(f"{lengths};{''.join(strings)}".encode())


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()
