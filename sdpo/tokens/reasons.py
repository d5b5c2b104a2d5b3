"""Name why a row cannot be used once it is tokens, and what to know of one that is used."""

from dataclasses import dataclass
from typing import Literal

Reason = Literal[
    "empty_prompt",
    "prompt_fills_length",
    "empty_completion",
    "end_token_inside",
    "equal_after_tokenisation",
    "template_refuses",
    "already_templated",
    "template_drops_text",
    "template_repeats_text",
    "boundary_moved",
    "control_token",
    "unknown_characters",
]
"""A row cannot be used for one of these reasons.

``empty_prompt``: no prompt token is left to predict the first token of the completion from.
``template_refuses``: the template raises an exception. From ``already_templated`` on: the tokens
would not hold what was given.
"""

NOT_AS_GIVEN: tuple[Reason, ...] = (
    "already_templated",
    "template_drops_text",
    "template_repeats_text",
    "boundary_moved",
    "control_token",
    "unknown_characters",
)
"""A person is told of these reasons at once: the text or the template has to be changed."""

DETAILS: dict[Reason, str] = {
    "empty_prompt": "no token of the prompt is left: the tokens of prompt and completion differ "
    "from the first on",
    "prompt_fills_length": "the prompt alone fills data.max_length: raise it, set "
    "data.max_prompt_length to keep the prompt's end, or shorten the prompt",
    "empty_completion": "a completion has no token besides its end",
    "end_token_inside": "a completion has an end token inside, where the model would stop: take "
    "it out of the text",
    "equal_after_tokenisation": "both sides have the same tokens, up to data.max_length",
}
"""Details say what a reason means and what to do, for those that need no more than the reason."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem says why a row cannot be used: ``reason`` is counted, ``detail`` is for people."""

    reason: Reason
    detail: str


Note = Literal[
    "user_turn_in_completion",
    "reasoning_dropped",
    "control_token_in_text",
    "prompt_cut",
    "variables_unread",
    "foreign_marks",
]
"""A person should know this of a row that is used all the same."""

NOTES: dict[Note, str] = {
    "user_turn_in_completion": "a completion has turns of the user, whose words are scored as the "
    "answer is: end the prompt later, or cut the completion after its first turn",
    "reasoning_dropped": "the chat template leaves out what the assistant thought in earlier "
    "turns, as it does when the model is used",
    "variables_unread": "variables for the chat template have no effect, as it does not read them: "
    "take them out, or give a template that does in `model.chat_template`",
    "foreign_marks": "a text begins or ends with marks of another model's chat template "
    "(`<|im_start|>`, `[/INST]`, `</s>` and the like), which are plain text to this one: take them "
    "out",
    "control_token_in_text": "text of `format: text` spells control tokens, which are read as such",
    "prompt_cut": "the prompt is longer than data.max_prompt_length, and its beginning was cut",
}
"""These texts say what a note means, with its remedy where there is one."""
