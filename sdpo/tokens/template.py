"""Turn conversations and plain text into ids of prompt and completion, with end token and BOS.

This module decides what the chat template prints and which tokens end a completion; where the
prompt ends within the ids, :mod:`sdpo.tokens.boundary` decides.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from sdpo.errors import ModelError
from sdpo.tokens.content import Contents, tags_of
from sdpo.tokens.controls import Texts
from sdpo.tokens.encode import TextEncoder
from sdpo.tokens.probes import WITH_TOOLS, Closing, Probes
from sdpo.tokens.ragged import Ragged
from sdpo.tokens.reasons import Note, Problem
from sdpo.tokens.render import Refused, Renderer, Row, inputs_of, name_of
from sdpo.tokens.token_file import Flags, Ids
from sdpo.tokens.whole import Conversation, Turns, has_foreign_marks, not_whole, templated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoded rows have all ids before any cut: of prompts, and per side of prompt + completion.

    ``end_appended`` says per side, bool ``[rows]``, whether its end token had to be added.
    ``problems`` are those of the rows whose ids do not hold what was given, by row; ``notes`` are
    the rows of which a person should know something. ``plain`` are the rows whose texts spell no
    control token as one: the end tokens in their completions are the template's. ``unread`` names,
    by row, the variables that nothing reads.
    """

    prompt: Ragged
    sides: tuple[Ragged, ...]
    end_appended: tuple[Flags, ...]
    problems: Mapping[int, Problem] = field(default_factory=dict)
    notes: Mapping[Note, Sequence[int]] = field(default_factory=dict)
    unread: Mapping[int, str] = field(default_factory=dict)
    plain: Flags | None = None


class Encoder:
    """An encoder encodes rows with one tokenizer, whose template sees the date ``clock``.

    ``end_token_ids`` are the ids at which the model stops generating (``generation_config``); with
    the tokenizer's eos and the template's own end of an assistant turn they are ``end_ids``.
    ``variables`` are those that the template gets for all rows; a row's own take precedence.

    Raises:
        ModelError: nothing could end a completion, or the template does not print messages.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        clock: datetime,
        end_token_ids: Sequence[int] = (),
        variables: Mapping[str, Any] = {},
    ) -> None:
        self.tokenizer = tokenizer
        self._renderer = Renderer(tokenizer, clock=clock, variables=variables)
        self.template = self._renderer.template
        self._front = _special_tokens_in_front(tokenizer)
        self._encoder = TextEncoder(tokenizer)
        self._puts_bos = bool(self._front) and self._front[0] == tokenizer.bos_token_id
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        ends = [*eos, *end_token_ids]
        self._probes = Probes(self._renderer, tokenizer, tuple(ends))
        self._closing = Closing()
        if self.template:
            self._closing = self._probes.closing()
            ends += self._closing.end
            if self._renderer.of_tools:
                ends += self._probes.closing(WITH_TOOLS).end
        if not ends:
            raise ModelError(
                "the tokenizer has no end-of-sequence token, so no completion could end: set "
                "`eos_token` in its tokenizer_config.json"
            )
        self._appended = ends[0]
        self.end_ids: Ids = np.array(sorted(set(ends)), dtype=np.int32)
        self._texts = Texts(self._encoder, tokenizer, end_ids=self.end_ids)
        templates = f"{self.template or ''}\n{self._renderer.of_tools}"
        self._contents = Contents(
            self._renderer.print_one, tags_of(templates, without=self._texts.control_names)
        )
        self._turns: dict[str, Turns] = {}

    @property
    def template_digest(self) -> str:
        """Return the sha256 of the chat template's text; that of nothing where there is none."""
        return hashlib.sha256((self.template or "").encode()).hexdigest()

    @property
    def end_tokens(self) -> list[str]:
        """Return the names of the tokens that end a completion."""
        return [str(t) for t in self.tokenizer.convert_ids_to_tokens(self.end_ids.tolist())]

    def facts(self) -> dict[str, Any]:
        """Return what was found out about the tokenizer, as plain values."""
        return {
            "tokens_in_front": self.tokenizer.convert_ids_to_tokens(self._front),
            "end_tokens": self.end_tokens,
            "template_closing": self._closing.text,
            "vocabulary": len(self.tokenizer),
        }

    def encode(self, rows: Sequence[Row], sides: Sequence[str]) -> Encoded:
        """Encode all ``rows`` at once; ``sides`` names the columns of completions.

        Raises:
            ModelError: there is a conversation, and no chat template.
        """
        chat = np.array([row["format"] == "chat" for row in rows], dtype=np.bool_)
        refused: dict[int, Problem] = {}
        kinds = [self._conversations(rows, chat, side, refused) for side in (None, *sides)]
        ids, spelled, fitting = self._texts.encode([text for kind in kinds for text in kind])
        of_kind = np.arange(len(rows) * len(kinds)).reshape(len(kinds), len(rows))
        prompt, *whole = [self._with_front(ids.take(kind), chat) for kind in of_kind]
        ended = [
            self._with_end(side, _own_ends(kind))
            for side, kind in zip(whole, kinds[1:], strict=True)
        ]
        problems, notes = self._judge(rows, kinds, sides, spelled=spelled[of_kind], refused=refused)
        unread = self._unread(rows)
        if unread:
            notes["variables_unread"] = list(unread)
        return Encoded(
            prompt,
            tuple(e[0] for e in ended),
            tuple(e[1] for e in ended),
            problems=self._texts.problems(kinds, fitting[of_kind]) | problems,
            notes=notes,
            unread=unread,
            plain=chat,
        )

    def _unread(self, rows: Sequence[Row]) -> dict[int, str]:
        named = {
            index: self._renderer.inputs.unread(inputs_of(row), is_chat=row["format"] == "chat")
            for index, row in enumerate(rows)
        }
        return {index: f"`{'`, `'.join(sorted(names))}`" for index, names in named.items() if names}

    def _conversations(
        self, rows: Sequence[Row], chat: Flags, side: str | None, refused: dict[int, Problem]
    ) -> list[Conversation | str]:
        """Return what is encoded for each row: the prompt, or prompt + completion of a ``side``.

        It is nothing for a row that the template refuses, which is noted in ``refused``.
        """
        conversations = [
            self._renderer.given([*row["prompt"], *(row[side] if side else ())], inputs_of(row))
            for row in rows
        ]
        rendered = iter(
            self._renderer.render(
                [c for c, is_chat in zip(conversations, chat, strict=True) if is_chat],
                rows=[row for row, is_chat in zip(rows, chat, strict=True) if is_chat],
                generation_prompt=side is None,
            )
        )
        found: list[Conversation | str] = []
        for index, (row, conversation) in enumerate(zip(rows, conversations, strict=True)):
            if not chat[index]:
                found.append("".join(message["content"] for message in conversation))
                continue
            text, messages = next(rendered), self._contents.shaped(conversation)
            if isinstance(text, Refused):
                refused.setdefault(index, Problem("template_refuses", text.words))
                found.append("")
                continue
            printed = self._contents.locate(
                messages, text, opening=side is None, inputs=inputs_of(row)
            )
            closing = self._probes.closing(inputs_of(row))
            found.append(Conversation(messages, len(row["prompt"]), text, printed, closing))
        return found

    def _judge(
        self,
        rows: Sequence[Row],
        kinds: Sequence[Sequence[Conversation | str]],
        sides: Sequence[str],
        *,
        spelled: Flags,
        refused: Mapping[int, Problem],
    ) -> tuple[dict[int, Problem], dict[Note, list[int]]]:
        """Return what is wrong with rows, and what to know of others.

        ``spelled`` is bool ``[kinds, rows]``.
        """
        name, problems = name_of(self.tokenizer), dict[int, Problem]()
        notes: dict[Note, list[int]] = {}
        for index, (prompt, *whole) in enumerate(zip(*kinds, strict=True)):
            row, found = rows[index], list[Note]()
            if index in refused:
                problems[index] = refused[index]
            elif isinstance(prompt, str):
                found += ["control_token_in_text"] if spelled[:, index].any() else []
            else:
                sides_of = [side for side in whole if isinstance(side, Conversation)]
                problem = (
                    self._spelled_beside(row, sides_of)
                    or templated(self._turns_of(row), sides_of, name)
                    or not_whole(prompt, sides_of, name)
                    or self._tools_dropped(row, prompt)
                )
                if problem:
                    problems[index] = problem
                    continue
                if any(side.printed.lost for side in sides_of):
                    found.append("reasoning_dropped")
                if any(has_foreign_marks(side) for side in sides_of):
                    found.append("foreign_marks")
                if any(message["role"] == "user" for side in sides for message in row[side]):
                    found.append("user_turn_in_completion")
            for note in found:
                notes.setdefault(note, []).append(index)
        return problems, notes

    def _turns_of(self, row: Row) -> Turns:
        """Return how the template of a row marks turns."""
        way = self._probes.like(inputs_of(row))
        if way not in self._turns:
            self._turns[way] = Turns.of(
                self._contents,
                self._renderer.print_one,
                inputs=way,
                bos=str(self.tokenizer.bos_token or ""),
                ends=self.end_tokens,
                controls=self._texts.control_names,
            )
        return self._turns[way]

    def _tools_dropped(self, row: Row, prompt: Conversation) -> Problem | None:
        """Return the problem of a tool, or a part of one, that the template did not print."""
        printed = "\0".join(prompt.printed.literals)
        text = self._renderer.inputs.of(inputs_of(row)).not_printed(printed)
        if not text:
            return None
        return Problem(
            "template_drops_text",
            f"the chat template of {name_of(self.tokenizer)} drops or changes a part of the row's "
            f"`tools`: {text[:60]!r}. Give a template that prints tools in `model.chat_template`, "
            "or empty the column",
        )

    def _spelled_beside(self, row: Row, sides: Sequence[Conversation]) -> Problem | None:
        """Return the problem of a control token beside the contents.

        The template would print one from a variable, or from what a message has besides its
        contents, as one of its own.
        """
        texts = list(self._renderer.inputs.of(inputs_of(row)).texts())
        rests = [message.rest for side in sides for message in side.messages if message.rest]
        texts += [text for rest in rests for text in rest.told]
        names = sorted(n for n in self._texts.control_names if any(n in text for text in texts))
        if not names:
            return None
        return Problem(
            "control_token",
            f"what the chat template is given beside the contents spells the control token "
            f"{', '.join(map(repr, names))}: take it out",
        )

    def _with_front(self, ids: Ragged, chat: Flags) -> Ragged:
        """Put one BOS first where the tokenizer does; plain text gets all its special tokens."""
        front = np.array(self._front, dtype=np.int32)
        if not len(front):
            return ids
        lengths = np.where(chat, int(self._puts_bos), len(front))
        fronts = Ragged(np.tile(front, len(ids)), np.arange(len(ids) + 1) * len(front))
        ids = fronts.part(0, lengths).joined(ids)
        if self._puts_bos:
            ids = ids.part(ids.leading(self._front[0]) - 1, ids.lengths)
        return ids

    def _with_end(self, ids: Ragged, own: Ids) -> tuple[Ragged, Flags]:
        """Give an end token to rows that end in none; also return which these are, bool ``[rows]``.

        ``own``, int32 ``[rows]``, is what ends an answer in the way that the row is printed, or -1.
        """
        lengths = ids.lengths
        last = ids.part(lengths - 1, lengths)
        ends = np.isin(last.ids, self.end_ids) | (last.ids == np.repeat(own, last.lengths))
        missing = last.count(ends) == 0
        appended = np.full(int(missing.sum()), self._appended, dtype=np.int32)
        return ids.joined(Ragged.of_lengths(appended, missing.astype(np.int64))), missing


def _own_ends(kind: Sequence[Conversation | str]) -> Ids:
    """Return the id that ends an answer as each row is printed, int32 ``[rows]``; -1 for none."""
    ends = [() if isinstance(text, str) else text.closing.end for text in kind]
    return np.array([end[0] if end else -1 for end in ends], dtype=np.int32)


def _special_tokens_in_front(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids that the tokenizer itself puts before a text (its BOS, as a rule)."""
    whole: list[int] = tokenizer("x", verbose=False)["input_ids"]
    plain: list[int] = tokenizer("x", add_special_tokens=False, verbose=False)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    raise ModelError(
        f"the tokenizer of {name_of(tokenizer)} encodes a text otherwise when it adds its special "
        "tokens: it cannot be used"
    )
