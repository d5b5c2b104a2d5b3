"""Check that a row's tokens hold what was given: every text whole, once, and on its own side.

What fails is a :class:`~sdpo.tokens.reasons.Problem` with its remedy; the row is then not used.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from sdpo.tokens.content import Contents, Print, Printed, Shaped
from sdpo.tokens.message_rest import Leaf
from sdpo.tokens.probes import Closing
from sdpo.tokens.reasons import Problem

_TEMPLATE = "Give another template in `model.chat_template`, or change the text"
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation has split messages, what was printed of them, and how the two match.

    The first ``prompt`` messages are the prompt; ``closing`` is what follows an answer.
    """

    messages: Sequence[Shaped]
    prompt: int
    text: str
    printed: Printed
    closing: Closing

    @property
    def cores(self) -> list[str]:
        """Return the cores of all messages, in turn."""
        return [core for message in self.messages for core in message.cores]

    def message_of(self, core: int) -> int:
        """Return the index of the message that a core belongs to."""
        for index, message in enumerate(self.messages):
            if core < len(message.cores):
                return index
            core -= len(message.cores)
        raise IndexError(core)


@dataclass(frozen=True, slots=True)
class Turns:
    """Turns have the marks by which a template opens and closes them, to recognise these in text.

    The ``strong`` ones hold a control token, so that one alone is enough.
    """

    opens: tuple[str, ...] = ()
    prompt_closes: tuple[str, ...] = ()
    answer_closes: tuple[str, ...] = ()
    weak_opens: tuple[str, ...] = ()
    weak_closes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        contents: Contents,
        print_: Print,
        *,
        inputs: str,
        bos: str,
        ends: Sequence[str],
        controls: set[str],
    ) -> "Turns":
        """Return those of the template that ``print_`` applies for these inputs.

        ``ends`` are the tokens that end an answer.
        """
        asking = _literals(contents, print_, ("user",), inputs, opening=True)
        talk = ("user", "assistant", "user")
        going_on = _literals(contents, print_, talk, inputs, opening=False)
        opens, closes = {asking[0]}, {asking[-1]}
        if len(going_on) > 2:
            asked = asking[-1][: _common(asking[-1], going_on[-1])]
            opens |= {asking[-1].removeprefix(asked), *_after(going_on[2], ends)}
        opens |= {text.strip().removeprefix(bos) for text in opens}

        def having(texts: set[str], *, control: bool) -> tuple[str, ...]:
            stripped = {text.strip() for text in texts} - {""}
            found = [t for t in stripped if any(c in t for c in controls) or not control]
            return tuple(sorted(found))

        return cls(
            opens=having(opens, control=True),
            prompt_closes=having(closes, control=True),
            answer_closes=having(closes | {*ends}, control=True),
            weak_opens=having(opens, control=False),
            weak_closes=having(closes, control=False),
        )

    def already(self, message: Shaped) -> bool:
        """Return whether a message's text brings the template's own marks along."""
        if not message.texts:
            return False
        first, last = message.texts[0], message.texts[-1]
        closes = self.answer_closes if message.role == "assistant" else self.prompt_closes
        return (
            first.startswith(self.opens)
            or last.endswith(closes)
            or (first.startswith(self.weak_opens) and last.endswith(self.weak_closes))
        )


def _literals(
    contents: Contents, print_: Print, roles: Sequence[str], inputs: str, *, opening: bool
) -> tuple[str, ...]:
    """Return what the template prints around a text of each role; nothing where it refuses them."""
    messages = [{"role": role, "content": "x"} for role in roles]
    try:
        text = print_(messages, opening, inputs)
    except jinja2.TemplateError:
        return ("", "")
    shaped = contents.shaped(messages)
    return contents.locate(shaped, text, opening=opening, inputs=inputs).literals


def _after(literal: str, ends: Sequence[str]) -> list[str]:
    """Return ``literal`` after each of the ``ends`` that it has."""
    return [literal.partition(end)[2] for end in ends if end in literal]


_MARK = (
    r"<\|(?:im_start|im_end|start_header_id|eot_id|eom_id|begin_of_text|end_of_text|endoftext|"
    r"start|end|return|user|assistant|system|START_OF_TURN_TOKEN|END_OF_TURN_TOKEN)\|>"
    r"|<(?:start_of_turn|end_of_turn|bos|eos)>|\[/?INST\]|<</?SYS>>|</?s>"
    r"|<\uff5c[^<>]{1,40}\uff5c>|\[\|(?:system|user|assistant|endofturn)\|\]"
)
_AT_AN_END = re.compile(rf"\s*(?:{_MARK})|(?s:.*)(?:{_MARK})\s*\Z")
"""Marks of many templates are found at a text's ends.

These are Qwen's, Llama's, Mistral's, Gemma's, Phi's, Zephyr's, EXAONE's, Command's, DeepSeek's and
gpt-oss's.
"""


def has_foreign_marks(side: Conversation) -> bool:
    """Return whether a text begins or ends with marks of another template."""
    return any(_AT_AN_END.match(core) for core in side.cores)


def templated(turns: Turns, sides: Sequence[Conversation], name: str) -> Problem | None:
    """Return the problem of a text that is already in the template, which would wrap it again."""
    for side in sides:
        for index, message in enumerate(side.messages):
            if turns.already(message):
                where = "a message of the prompt" if index < side.prompt else "the completion"
                return Problem(
                    "already_templated",
                    f"{where} has the marks of the chat template of {name} in its text, which "
                    f"would stand there twice: {_shown(message.filled(message.cores)['content'])}. "
                    "Take them out, or set the source's `format: text`",
                )
    return None


def not_whole(prompt: Conversation, sides: Sequence[Conversation], name: str) -> Problem | None:
    """Return the problem of a text that is not printed as it is, or not on its own side."""
    for side in sides:
        cores = side.cores
        for core in side.printed.lost:
            if core not in dropped_reasoning(side):
                return _lost(side, core, cores, name)
        for core in side.printed.repeated:
            return Problem(
                "template_repeats_text",
                f"the chat template of {name} prints {_part(side, core)} more than once: "
                f"{_shown(cores[core])}. {_TEMPLATE}",
            )
        if problem := _moved(prompt.text, side, cores, name):
            return problem
    return None


def dropped_reasoning(side: Conversation) -> set[int]:
    """Return the cores of reasoning in earlier turns that the template leaves out.

    It does the same when the model is used.
    """
    dropped, at = set[int](), 0
    for message in side.messages[: side.prompt]:
        if message.role == "assistant":
            start = at + message.thoughts
            dropped.update(range(start, start + message.reasoning))
        at += len(message.cores)
    return dropped.intersection(side.printed.lost)


def _lost(side: Conversation, core: int, cores: list[str], name: str) -> Problem:
    leaf, message = _leaf(side, core)
    remedy = _TEMPLATE
    if leaf and leaf.is_reasoning and message < side.prompt:
        remedy = (
            "Take the reasoning out of the turns before the last, where it is left out when the "
            "model is used, too, or give a template that prints it in `model.chat_template`"
        )
    return Problem(
        "template_drops_text",
        f"the chat template of {name} drops or changes {_part(side, core)}: "
        f"{_shown(cores[core])}. {remedy}",
    )


def _leaf(side: Conversation, core: int) -> tuple[Leaf | None, int]:
    """Return where a core is in its message's rest, and the message."""
    message = side.message_of(core)
    before = sum(len(m.cores) for m in side.messages[:message])
    return side.messages[message].leaf(core - before), message


def _moved(prompt: str, side: Conversation, cores: list[str], name: str) -> Problem | None:
    """Return the problem of a prompt that prints otherwise when an answer follows."""
    border = len(prompt)
    if not side.text.startswith(prompt):
        border = _common(prompt, side.text)
        if prompt[border:].strip():
            return Problem(
                "boundary_moved",
                f"the chat template of {name} prints the prompt otherwise when an answer follows: "
                f"alone it goes on with {_shown(prompt[border:])} where with an answer it has "
                f"{_shown(side.text[border:])}. {_TEMPLATE}",
            )
    of_prompt = sum(len(message.cores) for message in side.messages[: side.prompt])
    order, ends = side.printed.order, side.printed.ends
    place = sum(core < of_prompt for core in order)
    if not side.printed.in_order and any(core >= of_prompt for core in order[:place]):
        return Problem(
            "boundary_moved",
            f"the chat template of {name} prints a part of the completion before the prompt's "
            f"end. {_TEMPLATE}",
        )
    start = sum([len(core) for core in side.printed.spelled(cores)[:place]])
    if place and start + ends[place - 1] > border:
        return Problem(
            "boundary_moved",
            f"the chat template of {name} prints a part of the prompt only after an answer "
            f"follows, where it would be scored: {_shown(side.text[border:])}. {_TEMPLATE}",
        )
    if place < len(order) and start + ends[place] < border:
        return Problem(
            "boundary_moved",
            f"the chat template of {name} has a part of the completion in the prompt. {_TEMPLATE}",
        )
    return None


def _common(left: str, right: str) -> int:
    """Return how many characters both have in common from the start."""
    both = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in both if a != b), min(len(left), len(right)))


def _part(side: Conversation, core: int) -> str:
    leaf, message = _leaf(side, core)
    what = f"`{leaf.path[0]}`" if leaf else "a part"
    if message >= side.prompt:
        return f"{what} of the completion"
    return f"{what} of the prompt's {side.messages[message].role} message"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…")
