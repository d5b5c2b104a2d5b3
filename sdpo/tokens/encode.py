"""Encode texts a batch at a time, to the ids of ``tokenizer(text, add_special_tokens=False)``.

A text is cut in front of every added token (role marks, BOS, ...), which the tokenizer itself never
looks across, and each distinct stretch of a batch is encoded once: a prompt before both
completions, or a system message before all prompts, costs nothing again.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sdpo.tokens.ragged import Ragged
from sdpo.tokens.words import Words, component_state

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """An encoder encodes batches of texts with one tokenizer.

    A tokenizer without a backend of ``tokenizers``, or whose call does more than ask it, is called
    as any caller would.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._backend = _plain_backend(tokenizer)
        self._added: dict[str, int] = {}
        self._words: Words | None = None
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = False
            self._added = _borders(self._backend)
            if len(self._added) == len(self._backend.get_added_tokens_decoder()):
                self._words = Words.of(self._backend)
        self._cuts = _cuts(self._backend, self._added)
        self._pieces_stand_alone = bool(self._added) and _pieces_stand_alone(self._backend)

    def encode(self, texts: Sequence[str]) -> Ragged:
        """Return the ids of every text, without special tokens in front or behind."""
        backend, words = self._backend, self._words
        if backend is None:
            batch = self._tokenizer(
                list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
            )
            return Ragged.of(batch["input_ids"])
        at: dict[str, int] = {}
        stretches: list[int] = []
        counts = np.empty(len(texts), dtype=np.int64)
        for index, text in enumerate(texts):
            before = len(stretches)
            stretches += [at.setdefault(stretch, len(at)) for stretch in self._stretches(text)]
            counts[index] = len(stretches) - before
        distinct = self._by_words(words, list(at)) if words else _by_backend(backend, list(at))
        return distinct.take(np.array(stretches, dtype=np.int64)).merged(counts)

    def encode_parts(self, literals: Sequence[str], texts: Sequence[str]) -> list[int] | None:
        """Return the ids of ``literals[0] texts[0] literals[1] ...``, with texts as text alone.

        A special token that a text spells is text there; None where this tokenizer cannot do that.
        It can where a piece has the same ids wherever it is, so that the literals' own tokens can
        be put between the rest.
        """
        backend = self._backend
        if backend is None or not self._pieces_stand_alone:
            return None
        stretches, order, text = list[str](), list[int | None](), ""
        for index, literal in enumerate(literals):
            for piece in self._pieces(literal):
                if piece in self._added:
                    stretches.append(text)
                    order += [None, self._added[piece]]
                    text = ""
                else:
                    text += piece
            text += texts[index] if index < len(texts) else ""
        stretches.append(text)
        order.append(None)
        encoded = iter(_without_special_tokens(backend, stretches))
        ids: list[int] = []
        for token in order:
            ids += next(encoded) if token is None else [token]
        return ids

    def _pieces(self, text: str) -> list[str]:
        """Return ``text`` cut on both sides of every added token."""
        pieces = [text]
        for cut in self._cuts:
            pieces = [p for piece in pieces for p in self._split(cut, piece)]
        return pieces

    def _stretches(self, text: str) -> list[str]:
        """Return ``text`` cut before every added token; for :class:`Words`, on both sides of it."""
        pieces = self._pieces(text)
        if self._words:
            return [piece for piece in pieces if piece]
        # A stretch keeps the token before it: some tokenizers treat a text's start otherwise.
        stretches = [""]
        for piece in pieces:
            if piece in self._added:
                stretches.append(piece)
            else:
                stretches[-1] += piece
        return stretches if stretches[0] else stretches[1:]

    def _split(self, cut: re.Pattern[str], piece: str) -> list[str]:
        return [piece] if piece in self._added else cut.split(piece)

    def _by_words(self, words: Words, stretches: list[str]) -> Ragged:
        is_text = np.array([stretch not in self._added for stretch in stretches], dtype=np.bool_)
        texts = words.encode([s for s in stretches if s not in self._added])
        marks = Ragged.of([[self._added[s]] for s in stretches if s in self._added])
        order = np.empty(len(stretches), dtype=np.int64)
        order[is_text] = np.arange(len(texts))
        order[~is_text] = len(texts) + np.arange(len(marks))
        ids = np.concatenate([texts.ids, marks.ids])
        lengths = np.concatenate([texts.lengths, marks.lengths])
        return Ragged.of_lengths(ids, lengths).take(order)


def _by_backend(backend: "Tokenizer", stretches: list[str]) -> Ragged:
    encoded = backend.encode_batch_fast(stretches, add_special_tokens=False)
    return Ragged.of([encoding.ids for encoding in encoded])


def _without_special_tokens(backend: "Tokenizer", stretches: list[str]) -> list[list[int]]:
    backend.encode_special_tokens = True
    try:
        encoded = backend.encode_batch_fast(stretches, add_special_tokens=False)
    finally:
        backend.encode_special_tokens = False
    return [encoding.ids for encoding in encoded]


def _plain_backend(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer | None":
    """Return the ``tokenizers.Tokenizer`` behind a tokenizer whose call only asks it, or None."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    kind = type(tokenizer)
    own = (kind.__call__, kind._encode_plus)
    if own != (PreTrainedTokenizerFast.__call__, PreTrainedTokenizerFast._encode_plus):
        return None
    return None if tokenizer.split_special_tokens else tokenizer.backend_tokenizer


def _pieces_stand_alone(backend: "Tokenizer | None") -> bool:
    """Return whether text between added tokens has the same ids wherever it is.

    That is so for byte-level BPE that puts nothing before a text.
    """
    if backend is None:
        return False
    normaliser, cutter = component_state(backend.normalizer), component_state(backend.pre_tokenizer)
    if normaliser.get("type") not in (None, "NFC"):
        return False
    parts = cutter["pretokenizers"] if cutter.get("type") == "Sequence" else [cutter]
    kinds = {part.get("type") for part in parts}
    return kinds <= {"Split", "ByteLevel", "Digits"} and all(
        part.get("add_prefix_space") is False for part in parts if part["type"] == "ByteLevel"
    )


def _borders(backend: "Tokenizer") -> dict[str, int]:
    """Return the added tokens at which a cut changes no id: all of them, or none.

    None of them may reach beyond its own text, or be looked for only after a normalisation.
    """
    added = backend.get_added_tokens_decoder()
    tokens = added.values()
    if any(t.lstrip or t.rstrip or t.single_word or not t.content for t in tokens):
        return {}
    if backend.normalizer is not None and any(t.normalized for t in tokens):
        return {}
    return {token.content: id_ for id_, token in added.items()}


def _cuts(backend: "Tokenizer | None", added: dict[str, int]) -> list[re.Pattern[str]]:
    """Return expressions that find the added tokens where the tokenizer finds them.

    It looks for those that are not normalised first, and takes the longest that begins at a place.
    """
    if backend is None or not added:
        return []
    tokens = backend.get_added_tokens_decoder().values()
    cuts = []
    for normalised in (False, True):
        names = [t.content for t in tokens if t.normalized == normalised]
        names.sort(key=len, reverse=True)
        if names:
            cuts.append(re.compile(f"({'|'.join(map(re.escape, names))})"))
    return cuts
