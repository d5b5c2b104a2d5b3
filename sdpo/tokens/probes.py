"""Find how a template closes an answer, by printing a question and its answer.

That may depend on what a row gives its template beside the messages: tools choose another template
where the tokenizer has one for them, and variables switch within one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jinja2

from sdpo.errors import ModelError
from sdpo.tokens.render import Renderer, name_of, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "sdpo-probe"
"""No template would print this text of a message otherwise, or change it."""

_SCHEMA = {"type": "object", "properties": {}}
_TOOL = {
    "type": "function",
    "function": {"name": _PROBE, "description": _PROBE, "parameters": _SCHEMA},
}
WITH_TOOLS = json.dumps({"tools": [_TOOL]})
"""A row with tools gives its template something like this."""

_MOST_WAYS = 64
"""So many inputs are told apart; rows of others are taken as those without variables."""


@dataclass(frozen=True, slots=True)
class Closing:
    """A closing is what is printed after an answer, and how much of it is ``kept``.

    That is up to the token that ends the answer, if one does; its id is ``end``.
    """

    text: str = ""
    kept: str = ""
    end: tuple[int, ...] = ()


class Probes:
    """Probes find what templates print after an answer; ``ends`` are the ids that end one."""

    def __init__(
        self, renderer: Renderer, tokenizer: "PreTrainedTokenizerBase", ends: Sequence[int]
    ) -> None:
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._ends = ends
        self._known: dict[str, Closing] = {}

    def like(self, inputs: str) -> str:
        """Return inputs that switch the template as these do, with a placeholder for tools."""
        if not inputs:
            return ""
        given = json.loads(inputs)
        if given.get("tools"):
            given["tools"] = [_TOOL]
        way = json.dumps(given)
        if way in self._known or len(self._known) < _MOST_WAYS:
            return way
        return WITH_TOOLS if "tools" in given else ""

    def closing(self, inputs: str = "") -> Closing:
        """Return the closing of a row with these inputs.

        Raises:
            ModelError: a template does not print a question and its answer, even without inputs.
        """
        way = self.like(inputs)
        if way not in self._known:
            try:
                self._known[way] = self._probed(way)
            except (ModelError, jinja2.TemplateError):
                if not way:
                    raise
                self._known[way] = self.closing()  # rows are refused one by one
        return self._known[way]

    def _probed(self, inputs: str) -> Closing:
        conversation = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _PROBE},
        ]
        name = name_of(self._tokenizer)
        try:
            text = self._renderer.print_one(conversation, False, inputs)
        except jinja2.TemplateError as error:
            raise ModelError(
                f"the chat template of {name} cannot print a question and its answer: "
                f"{words_of(error)}. "
                "Give a working one in `model.chat_template`"
            ) from error
        _, found, closing = text.rpartition(_PROBE)
        if not found:
            raise ModelError(
                f"the chat template of {name} does not print what the assistant says: give a "
                "working one in `model.chat_template`"
            )
        kept, end = _up_to_end_token(self._tokenizer, closing, self._ends)
        return Closing(closing, kept, tuple(end))


def _up_to_end_token(
    tokenizer: "PreTrainedTokenizerBase", closing: str, ends: Sequence[int]
) -> tuple[str, list[int]]:
    """Return ``closing`` up to and with the token that ends the turn, and the token's id.

    That is the first of ``ends`` in it, else the first special token; without either, all of it and
    no id.
    """
    special = {id_: t.content for id_, t in tokenizer.added_tokens_decoder.items() if t.special}
    for known in ({id_: str(tokenizer.convert_ids_to_tokens(id_)) for id_ in ends}, special):
        found = [(closing.find(text), -len(text), id_) for id_, text in known.items()]
        if found := [entry for entry in found if entry[0] >= 0]:
            position, negative_length, id_ = min(found)
            return closing[: position - negative_length], [id_]
    return closing, []
