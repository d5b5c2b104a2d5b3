"""Define what tokenising found, in numbers and in words for a person."""

import re
from dataclasses import dataclass

from sdpo.system.words import be, counted
from sdpo.tokens.reasons import NOT_AS_GIVEN, NOTES


@dataclass(frozen=True, slots=True)
class TokenReport:
    """A report says what tokenising found.

    ``truncated`` counts usable rows by side; ``moved_rows`` those whose boundary is before the end
    of the prompt's own ids; ``end_appended`` the sides of conversations that got an end token since
    the template closed with none. ``notes`` counts usable rows by
    :data:`~sdpo.tokens.reasons.Note`; ``examples`` has the first row of each.
    """

    rows: int
    usable: int
    reasons: dict[str, int]
    truncated: dict[str, int]
    moved_rows: int
    most_moved_tokens: int
    end_tokens: list[str]
    end_appended: int
    notes: dict[str, int]
    examples: dict[str, str]

    def warnings(self, what: str) -> list[str]:
        """Return what a person should know at once about ``what``.

        It is about what is used, and about what is not used because of the template or the text.
        """
        told = []
        if self.end_appended:
            told.append(
                f"{counted(self.end_appended, 'completion')} of {what} got an end token: the "
                "template closes with none"
            )
        for note, meaning in NOTES.items():
            if count := self.notes.get(note):
                told.append(f"{_of(count, what)}: {meaning} (first: {self.examples[note]})")
        if count := self.reasons.get("template_refuses"):
            told.append(
                f"{_of(count, what)} {be(count)} not used, as the chat template refuses them: "
                f"{self.examples['template_refuses']}"
            )
        for reason in NOT_AS_GIVEN:
            if count := self.reasons.get(reason):
                told.append(
                    f"{_of(count, what)} {be(count)} not used ({reason}), as the tokens would not "
                    f"hold what was given: {self.examples[reason]}"
                )
        return told


def _of(count: int, what: str) -> str:
    """Return the number of ``what``, whose first noun has an s: ``1 pair that step 2 has``."""
    return f"{count} {re.sub(r's(?= |$)', '', what, count=1) if count == 1 else what}"
