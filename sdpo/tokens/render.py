"""Print conversations with a tokenizer's chat template, with the date frozen, within bounds."""

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2

from sdpo.errors import ModelError
from sdpo.system.limits import bounded
from sdpo.system.streams import visible
from sdpo.tokens.inputs import RowInputs
from sdpo.tokens.message_rest import template_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]
Row = Mapping[str, Any]
"""A row of ``pairs.parquet`` or ``supervised.parquet`` has ``format``, ``prompt`` and its sides."""

_TEMPLATE_S = 10.0
_CONVERSATION_S = 0.05
"""Rendering may take so many seconds, and more for each conversation: 1000 times the usual."""
_TEMPLATE_BYTES = 2 * 10**9
_MOST_CHARACTERS = 10**6
_SHOWN_WORDS = 300
_SHOWN_ROLES = 12


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal holds the template's words on a conversation that it refuses."""

    words: str


class Renderer:
    """A renderer prints conversations with the template of ``tokenizer``.

    The template sees the date ``clock`` and, for every row that has none of their names,
    ``variables``.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        clock: datetime,
        variables: Mapping[str, Any] = {},
    ) -> None:
        self.template = _chat_template(tokenizer)
        named = tokenizer.chat_template
        self.of_tools = (named.get("tool_use") or "") if isinstance(named, dict) else ""
        """Rows with tools have this template, where the tokenizer has one for them; else ""."""
        self.inputs = RowInputs(self.template or "", variables, of_tools=self.of_tools)
        self._tokenizer = tokenizer
        self._frozen_template = self.template and _with_frozen_clock(self.template, clock)
        self._frozen_of_tools = (
            _with_frozen_clock(self.of_tools, clock) if self.of_tools else self._frozen_template
        )

    def given(self, messages: Sequence[Mapping[str, str]], inputs: str) -> list[dict[str, Any]]:
        """Return the messages of a row as the template that prints it gets them."""
        template = self._frozen(inputs) or ""
        return [template_message(message, template) for message in messages]

    def render(
        self, conversations: Sequence[Messages], *, rows: Sequence[Row], generation_prompt: bool
    ) -> list[str | Refused]:
        """Print each conversation, or refuse it; those with the same inputs go together."""
        alike: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            alike.setdefault(inputs_of(row), []).append(index)
        texts: list[str | Refused] = [""] * len(rows)
        for inputs, members in alike.items():
            those = [conversations[i] for i in members]
            with self._bounded(len(those)):
                printed = self._render_alike(those, inputs, generation_prompt)
            for index, text in zip(members, printed, strict=True):
                texts[index] = text
        return texts

    def _render_alike(
        self, conversations: Sequence[Messages], inputs: str, generation_prompt: bool
    ) -> Sequence[str | Refused]:
        try:
            return self._apply(conversations, inputs, generation_prompt)
        except jinja2.TemplateError as error:
            if len(conversations) == 1:
                return [self._refused(conversations[0], error)]
        # Halves, so that few that are refused among many cost little.
        middle = len(conversations) // 2
        return [
            text
            for half in (conversations[:middle], conversations[middle:])
            for text in self._render_alike(half, inputs, generation_prompt)
        ]

    def _refused(self, conversation: Messages, error: jinja2.TemplateError) -> Refused:
        roles = [message["role"] for message in conversation]
        more = ", ..." if len(roles) > _SHOWN_ROLES else ""
        return Refused(
            f"the chat template of {name_of(self._tokenizer)} refuses the roles "
            f"{', '.join(roles[:_SHOWN_ROLES])}{more}: {words_of(error)}. Change the data, or "
            "give a template that takes it in `model.chat_template`"
        )

    def _frozen(self, inputs: str) -> str | None:
        """Return the template that prints rows of these inputs."""
        of_tools = inputs and self.inputs.of(inputs).tools
        return self._frozen_of_tools if of_tools else self._frozen_template

    def apply(
        self, conversations: Sequence[Messages], inputs: str = "", *, generation_prompt: bool
    ) -> list[str]:
        """Return each conversation as the template prints it, with ``inputs`` (JSON) of the row.

        Raises what the template does, and where it takes too long or prints too much.
        """
        with self._bounded(len(conversations)):
            return self._apply(conversations, inputs, generation_prompt)

    def _bounded(self, conversations: int) -> AbstractContextManager[None]:
        seconds = _TEMPLATE_S + _CONVERSATION_S * conversations
        name = f"the chat template of {name_of(self._tokenizer)}"
        return bounded(name, seconds=seconds, size_bytes=_TEMPLATE_BYTES)

    def _apply(
        self, conversations: Sequence[Messages], inputs: str, generation_prompt: bool
    ) -> list[str]:
        if not self._frozen_template:
            raise ModelError(
                f"the data has conversations, but the tokenizer of {name_of(self._tokenizer)} has "
                "no chat template: give one in `model.chat_template`, or set `format: text` for "
                "the source"
            )
        given = self.inputs.of(inputs)
        with _as_template_errors():
            texts: list[str] = self._tokenizer.apply_chat_template(
                [list(conversation) for conversation in conversations],
                tools=given.tools,
                chat_template=self._frozen(inputs),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **given.variables,
            )
        for text, conversation in zip(texts, conversations, strict=True):
            size = len(inputs) + sum(len(str(v)) for m in conversation for v in m.values())
            if len(text) > _MOST_CHARACTERS + 100 * size:
                raise ModelError(
                    f"the chat template of {name_of(self._tokenizer)} prints {len(text)} "
                    f"characters for a conversation of {size}: give another in "
                    "`model.chat_template`"
                )
        return texts

    def print_one(self, messages: Messages, opening: bool, inputs: str = "") -> str:
        """Return one conversation as the template prints it; as :meth:`apply`."""
        [text] = self.apply([messages], inputs, generation_prompt=opening)
        return text


@contextmanager
def _as_template_errors() -> Iterator[None]:
    """Turn errors of a template's own code (a division by zero) into a template's refusal."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise jinja2.TemplateRuntimeError(f"{type(error).__name__}: {error}") from error
    except (AttributeError, RecursionError, SyntaxError) as error:
        raise jinja2.TemplateRuntimeError(f"{type(error).__name__}: {error}") from error


def words_of(error: jinja2.TemplateError) -> str:
    """Return what a template says in an error, for a message."""
    return " ".join(visible(str(error)).split())[:_SHOWN_WORDS]


def inputs_of(row: Row) -> str:
    """Return what the template is given besides messages, as JSON; empty where nothing is."""
    return row.get("template_inputs") or ""


def describe(row: Row) -> str:
    """Return where a row came from, for a message."""
    return f"row {row['row']}" + (f" of source `{row['source']}`" if row.get("source") else "")


def name_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return where a tokenizer was loaded from, for a message."""
    return str(tokenizer.name_or_path or "this tokenizer")


def _chat_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _with_frozen_clock(template: str, clock: datetime) -> str:
    """Return ``template`` with ``strftime_now`` shadowed by a macro that formats ``clock``.

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
