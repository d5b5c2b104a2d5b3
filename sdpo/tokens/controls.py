"""Count control tokens in the ids of a batch: as many as the template printed, and no other.

They are counted in the ids, which costs next to nothing. Where a conversation has others than its
template printed, its texts spell some. These are encoded as the text that they are where the
tokenizer can do that; elsewhere the row has a problem.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sdpo.tokens.content import is_reasoning_tag
from sdpo.tokens.encode import TextEncoder
from sdpo.tokens.ragged import Counts, Ragged
from sdpo.tokens.reasons import Problem
from sdpo.tokens.token_file import Flags, Ids
from sdpo.tokens.whole import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BETWEEN = " x "
"""It is put in the place of a text between literals whose control tokens are counted."""


class Texts:
    """This class encodes conversations and plain texts with the right control tokens."""

    def __init__(
        self, encoder: TextEncoder, tokenizer: "PreTrainedTokenizerBase", *, end_ids: Ids
    ) -> None:
        self._encoder = encoder
        special = {id_ for id_, t in tokenizer.added_tokens_decoder.items() if t.special}
        names = {id_: str(tokenizer.convert_ids_to_tokens(id_)) for id_ in special}
        controls = {id_ for id_, name in names.items() if not is_reasoning_tag(name)}
        controls |= {*tokenizer.all_special_ids, *end_ids.tolist()}
        self._unknown = tokenizer.unk_token_id
        self._unknown_name = str(tokenizer.unk_token or "")
        self._controls = np.array(sorted(controls), dtype=np.int32)
        self.control_names = {
            str(tokenizer.convert_ids_to_tokens(id_)) for id_ in self._controls.tolist()
        }

    def encode(self, texts: Sequence[Conversation | str]) -> tuple[Ragged, Flags, Flags]:
        """Encode every text; say which spelled control tokens, and which have only the right ones.

        Both are bool ``[texts]``; the right ones are those that the template printed.
        """
        ids = self._encoder.encode([self._cut(text) for text in texts])
        expected = np.array([self._expected(text) for text in texts], dtype=np.int64)
        spelled = self._count(ids) != expected
        replaced: dict[int, list[int]] = {}
        for index in np.flatnonzero(spelled).tolist():
            text = texts[index]
            if isinstance(text, Conversation) and (plain := self._as_text(text)) is not None:
                replaced[index] = plain
        if replaced:
            ids = Ragged.of([replaced.get(index, ids[index]) for index in range(len(ids))])
        return ids, spelled, self._count(ids) == expected

    def problems(
        self, kinds: Sequence[Sequence[Conversation | str]], fitting: Flags
    ) -> dict[int, Problem]:
        """Return the problems of rows that have other control tokens than their template printed.

        ``fitting`` is bool ``[kinds, rows]``.
        """
        found: dict[int, Problem] = {}
        for row in np.flatnonzero(~fitting.all(axis=0)).tolist():
            texts = [kind[row] for kind in kinds]
            if problem := self._problem(texts):
                found[row] = problem
        return found

    def _problem(self, texts: Sequence[Conversation | str]) -> Problem | None:
        cores = [core for text in texts if not isinstance(text, str) for core in text.cores]
        plain = cores or [text for text in texts if isinstance(text, str)]
        names = sorted(name for name in self.control_names if any(name in text for text in plain))
        if names and not cores:
            return None  # plain text may hold control tokens
        if names:
            return Problem(
                "control_token",
                f"the text spells the control token {', '.join(map(repr, names))}, which this "
                "tokenizer cannot encode as text: take it out, or set the source's "
                "`format: text` if it is meant as one",
            )
        if self._unknown_name:
            return Problem(
                "unknown_characters",
                f"the tokenizer has no token for some of the characters and puts "
                f"{self._unknown_name} for them: take them out of the text",
            )
        return Problem("control_token", "the text and the template together spell a control token")

    def _cut(self, text: Conversation | str) -> str:
        """Return a text without what is printed after the end token (ChatML: a newline)."""
        if isinstance(text, str):
            return text
        if not _ends_in_closing(text):
            return text.text
        return text.text[: len(text.text) - len(text.closing.text)] + text.closing.kept

    def _expected(self, text: Conversation | str) -> int:
        """Return how many control tokens are in what the template printed of its own."""
        if isinstance(text, str):
            return 0
        known, closing = text.printed.controls, text.closing.text
        if closing not in known:
            literals = _BETWEEN.join(_literals(text))
            known[closing] = int(self._count(self._encoder.encode([literals]))[0])
        return known[closing]

    def _as_text(self, text: Conversation) -> list[int] | None:
        return self._encoder.encode_parts(_literals(text), text.printed.spelled(text.cores))

    def _count(self, ids: Ragged) -> Counts:
        return ids.count(np.isin(ids.ids, self._controls))


def _ends_in_closing(text: Conversation) -> bool:
    return text.printed.literals[-1].endswith(text.closing.text)


def _literals(text: Conversation) -> list[str]:
    *before, last = text.printed.literals
    if not _ends_in_closing(text):
        return [*before, last]
    return [*before, last[: len(last) - len(text.closing.text)] + text.closing.kept]
