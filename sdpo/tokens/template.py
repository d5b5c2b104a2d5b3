"""Conversations and plain text to the ids of prompt and completion, end token and BOS in place.

This module owns what the chat template prints and which tokens end a completion; where the prompt
ends within the ids is :mod:`sdpo.tokens.boundary`'s.
"""

import hashlib
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from sdpo.errors import DataError, ModelError
from sdpo.system.limits import bounded
from sdpo.tokens.content import Contents, tags_of
from sdpo.tokens.controls import Texts
from sdpo.tokens.encode import TextEncoder
from sdpo.tokens.ragged import Ragged
from sdpo.tokens.reasons import Note, Problem
from sdpo.tokens.token_file import Flags, Ids
from sdpo.tokens.whole import Conversation, Turns, not_whole, templated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]
Row = Mapping[str, Any]
"""A row of ``pairs.parquet`` or ``supervised.parquet``: ``format``, ``prompt`` and its sides."""

_TEMPLATE_S = 10.0
_CONVERSATION_S = 0.05
"""Seconds of computing that rendering may take, and more of it for each conversation: a thousand
times what templates take."""
_TEMPLATE_BYTES = 2 * 10**9
_MOST_CHARACTERS = 10**6

_PROBE = "sdpo-probe"
"""A message's text that no template would print otherwise or change."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows' ids before any cut: the prompts' own, and per side those of prompt + completion.

    ``end_appended`` says per side, bool ``[rows]``, whether its end token had to be added.
    ``problems`` are those of the rows whose ids do not hold what was given, by row; ``notes`` the
    rows of which there is something to be known. ``plain`` are the rows whose texts spell no
    control token as one: what end tokens their completions have, the template put there.
    """

    prompt: Ragged
    sides: tuple[Ragged, ...]
    end_appended: tuple[Flags, ...]
    problems: Mapping[int, Problem] = field(default_factory=dict)
    notes: Mapping[Note, Sequence[int]] = field(default_factory=dict)
    plain: Flags | None = None


class Encoder:
    """Encodes rows of one tokenizer, with the date that its template sees frozen at ``clock``.

    ``end_token_ids`` are the ids at which the model stops generating (``generation_config``); with
    the tokenizer's eos and the template's own end of an assistant turn they are ``end_ids``.

    Raises:
        ModelError: nothing could end a completion, or the template does not print messages.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        clock: datetime,
        end_token_ids: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.template = _chat_template(tokenizer)
        self._frozen_template = self.template and _with_frozen_clock(self.template, clock)
        self._front = _special_tokens_in_front(tokenizer)
        self._encoder = TextEncoder(tokenizer)
        self._puts_bos = bool(self._front) and self._front[0] == tokenizer.bos_token_id
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ends = [*eos, *end_token_ids]
        self._closing = self._kept_closing = ""
        if self.template:
            self._closing = self._probe_closing()
            self._kept_closing, turn_end = _up_to_end_token(tokenizer, self._closing, ends)
            ends += turn_end
        if not ends:
            raise ModelError(
                "the tokenizer has no end-of-sequence token, so no completion could end: set "
                "`eos_token` in its tokenizer_config.json"
            )
        self._appended = ends[0]
        self.end_ids: Ids = np.array(sorted(set(ends)), dtype=np.int32)
        self._texts = Texts(
            self._encoder, tokenizer, end_ids=self.end_ids, cut=(self._closing, self._kept_closing)
        )
        names = self._texts.control_names
        self._contents = Contents(self._print, tags_of(self.template or "", without=names))
        self._turns = Turns()
        if self.template:
            self._turns = Turns.of(
                self._contents,
                self._print,
                bos=str(tokenizer.bos_token or ""),
                ends=self.end_tokens,
                controls=names,
            )

    @property
    def template_digest(self) -> str:
        """sha256 of the chat template's text; that of nothing where there is none."""
        return hashlib.sha256((self.template or "").encode()).hexdigest()

    @property
    def end_tokens(self) -> list[str]:
        """Names of the tokens that end a completion."""
        return [str(t) for t in self.tokenizer.convert_ids_to_tokens(self.end_ids.tolist())]

    def facts(self) -> dict[str, Any]:
        """What was found out about the tokenizer, as plain values."""
        return {
            "tokens_in_front": self.tokenizer.convert_ids_to_tokens(self._front),
            "end_tokens": self.end_tokens,
            "template_closing": self._closing,
            "vocabulary": len(self.tokenizer),
        }

    def encode(self, rows: Sequence[Row], sides: Sequence[str]) -> Encoded:
        """Ids of all ``rows`` at once; ``sides`` names the columns of completions.

        Raises:
            ModelError: a conversation, and the tokenizer has no chat template.
            DataError: the template refuses a conversation.
        """
        chat = np.array([row["format"] == "chat" for row in rows], dtype=np.bool_)
        kinds = [self._conversations(rows, chat, side) for side in (None, *sides)]
        ids, spelled, fitting = self._texts.encode([text for kind in kinds for text in kind])
        of_kind = np.arange(len(rows) * len(kinds)).reshape(len(kinds), len(rows))
        prompt, *whole = [self._with_front(ids.take(kind), chat) for kind in of_kind]
        ended = [self._with_end(side) for side in whole]
        problems, notes = self._judge(rows, kinds, sides, spelled=spelled[of_kind])
        return Encoded(
            prompt,
            tuple(e[0] for e in ended),
            tuple(e[1] for e in ended),
            problems=self._texts.problems(kinds, fitting[of_kind]) | problems,
            notes=notes,
            plain=chat,
        )

    def _conversations(
        self, rows: Sequence[Row], chat: Flags, side: str | None
    ) -> list[Conversation | str]:
        """What is encoded for each row: the prompt, or prompt + completion of a side."""
        conversations = [[*row["prompt"], *(row[side] if side else ())] for row in rows]
        rendered = iter(
            self._render(
                [c for c, is_chat in zip(conversations, chat, strict=True) if is_chat],
                rows=[row for row, is_chat in zip(rows, chat, strict=True) if is_chat],
                generation_prompt=side is None,
            )
        )
        found: list[Conversation | str] = []
        for row, conversation, is_chat in zip(rows, conversations, chat, strict=True):
            if not is_chat:
                found.append("".join(message["content"] for message in conversation))
                continue
            text, messages = next(rendered), self._contents.shaped(conversation)
            printed = self._contents.locate(messages, text, opening=side is None)
            found.append(Conversation(messages, len(row["prompt"]), text, printed))
        return found

    def _judge(
        self,
        rows: Sequence[Row],
        kinds: Sequence[Sequence[Conversation | str]],
        sides: Sequence[str],
        *,
        spelled: Flags,
    ) -> tuple[dict[int, Problem], dict[Note, list[int]]]:
        """What is wrong with rows, and what is to be known of others; ``spelled`` bool
        ``[kinds, rows]``."""
        name, problems = name_of(self.tokenizer), dict[int, Problem]()
        notes: dict[Note, list[int]] = {}
        for index, (prompt, *whole) in enumerate(zip(*kinds, strict=True)):
            row, found = rows[index], list[Note]()
            if isinstance(prompt, str):
                found += ["control_token_in_text"] if spelled[:, index].any() else []
            else:
                sides_of = [side for side in whole if isinstance(side, Conversation)]
                problem = templated(self._turns, sides_of, name) or not_whole(
                    prompt, sides_of, name
                )
                if problem:
                    problems[index] = problem
                    continue
                if any(side.printed.lost for side in sides_of):
                    found.append("reasoning_dropped")
                if any(message["role"] == "user" for side in sides for message in row[side]):
                    found.append("user_turn_in_completion")
            for note in found:
                notes.setdefault(note, []).append(index)
        return problems, notes

    def _render(
        self, conversations: Sequence[Messages], *, rows: Sequence[Row], generation_prompt: bool
    ) -> list[str]:
        if not conversations:
            return []
        try:
            return self._apply(conversations, generation_prompt=generation_prompt)
        except jinja2.TemplateError as error:
            for conversation, row in zip(conversations, rows, strict=True):
                try:
                    self._apply([conversation], generation_prompt=generation_prompt)
                except jinja2.TemplateError as refusal:
                    roles = ", ".join(message["role"] for message in conversation)
                    raise DataError(
                        f"the chat template of {name_of(self.tokenizer)} refuses the conversation "
                        f"of {describe(row)} with the roles {roles}: {refusal}. Change the data, "
                        "or give a template that takes it in `model.chat_template`"
                    ) from error
            raise

    def _apply(self, conversations: Sequence[Messages], *, generation_prompt: bool) -> list[str]:
        if not self._frozen_template:
            raise ModelError(
                f"the data has conversations, but the tokenizer of {name_of(self.tokenizer)} has "
                "no chat template: give one in `model.chat_template`, or set `format: text` for "
                "the source"
            )
        name = f"the chat template of {name_of(self.tokenizer)}"
        seconds = _TEMPLATE_S + _CONVERSATION_S * len(conversations)
        with bounded(name, seconds=seconds, size_bytes=_TEMPLATE_BYTES), _as_template_errors():
            texts: list[str] = self.tokenizer.apply_chat_template(
                [list(conversation) for conversation in conversations],
                chat_template=self._frozen_template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        for text, conversation in zip(texts, conversations, strict=True):
            given = sum(len(message["content"]) for message in conversation)
            if len(text) > _MOST_CHARACTERS + 100 * given:
                raise ModelError(
                    f"{name} prints {len(text)} characters for a conversation of {given}: give "
                    "another in `model.chat_template`"
                )
        return texts

    def _print(self, messages: Messages, opening: bool) -> str:
        [text] = self._apply([messages], generation_prompt=opening)
        return text

    def _probe_closing(self) -> str:
        """What the template prints after an assistant's last message."""
        conversation = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _PROBE},
        ]
        try:
            [text] = self._apply([conversation], generation_prompt=False)
        except jinja2.TemplateError as error:
            raise ModelError(
                f"the chat template of {name_of(self.tokenizer)} cannot print a question and its "
                f"answer: {error}. Give a working one in `model.chat_template`"
            ) from error
        _, found, closing = text.rpartition(_PROBE)
        if not found:
            raise ModelError(
                f"the chat template of {name_of(self.tokenizer)} does not print what the assistant "
                "says: give a working one in `model.chat_template`"
            )
        return closing

    def _with_front(self, ids: Ragged, chat: Flags) -> Ragged:
        """Exactly one BOS where the tokenizer puts one; text gets all its special tokens."""
        front = np.array(self._front, dtype=np.int32)
        if not len(front):
            return ids
        lengths = np.where(chat, int(self._puts_bos), len(front))
        fronts = Ragged(np.tile(front, len(ids)), np.arange(len(ids) + 1) * len(front))
        ids = fronts.part(0, lengths).joined(ids)
        if self._puts_bos:
            ids = ids.part(ids.leading(self._front[0]) - 1, ids.lengths)
        return ids

    def _with_end(self, ids: Ragged) -> tuple[Ragged, Flags]:
        """Rows that end in no end token get one; which those are."""
        lengths = ids.lengths
        last = ids.part(lengths - 1, lengths)
        missing = last.count(np.isin(last.ids, self.end_ids)) == 0
        appended = np.full(int(missing.sum()), self._appended, dtype=np.int32)
        return ids.joined(Ragged.of_lengths(appended, missing.astype(np.int64))), missing


@contextmanager
def _as_template_errors() -> Iterator[None]:
    """A template that divides by zero is refused as one that raises an exception of its own."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise jinja2.TemplateRuntimeError(f"{type(error).__name__}: {error}") from error
    except (AttributeError, RecursionError, SyntaxError) as error:
        raise jinja2.TemplateRuntimeError(f"{type(error).__name__}: {error}") from error


def describe(row: Row) -> str:
    """Where a row came from, for a message."""
    return f"row {row['row']}" + (f" of source `{row['source']}`" if row.get("source") else "")


def name_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Where a tokenizer was loaded from, for a message."""
    return str(tokenizer.name_or_path or "this tokenizer")


def _chat_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _special_tokens_in_front(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that the tokenizer itself puts before a text (its BOS, as a rule)."""
    whole: list[int] = tokenizer("x", verbose=False)["input_ids"]
    plain: list[int] = tokenizer("x", add_special_tokens=False, verbose=False)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    raise ModelError(
        f"the tokenizer of {name_of(tokenizer)} encodes a text otherwise when it adds its special "
        "tokens: it cannot be used"
    )


def _up_to_end_token(
    tokenizer: "PreTrainedTokenizerBase", closing: str, ends: Sequence[int]
) -> tuple[str, list[int]]:
    """``closing`` up to the token that ends the turn, that included, and the token's id.

    That is the first of ``ends``, else the first special token; without either, all and no id.
    """
    special = {id_: t.content for id_, t in tokenizer.added_tokens_decoder.items() if t.special}
    for known in ({id_: str(tokenizer.convert_ids_to_tokens(id_)) for id_ in ends}, special):
        found = [(closing.find(text), -len(text), id_) for id_, text in known.items()]
        if found := [entry for entry in found if entry[0] >= 0]:
            position, negative_length, id_ = min(found)
            return closing[: position - negative_length], [id_]
    return closing, []


def _with_frozen_clock(template: str, clock: datetime) -> str:
    """``template`` with ``strftime_now`` shadowed by a macro that formats ``clock``.

    transformers turns a function given as a template variable into a placeholder text, and the
    environment's own reads the present, so the template itself brings the function along.
    """
    if "strftime_now" not in template:
        return template
    letters = [flag + letter for letter in string.ascii_letters for flag in ("", "-")]
    directives = {f"%{d}": clock.strftime(f"%{d}") for d in letters}
    # The environment drops the newline after a block, so that `template` starts a line, as before.
    return _CLOCK_MACRO.replace("DIRECTIVES", json.dumps(directives)) + "\n" + template


_CLOCK_MACRO = r"""
{%- macro strftime_now(format) -%}
  {%- set result = namespace(text=format.replace('%%', '\0')) -%}
  {%- for directive, value in DIRECTIVES.items() -%}
    {%- set result.text = result.text.replace(directive, value) -%}
  {%- endfor -%}
  {{- result.text.replace('\0', '%') -}}
{%- endmacro %}""".lstrip()
