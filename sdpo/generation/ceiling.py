"""Hold a round of samples to what it may take, in tokens and in minutes."""

import time

from sdpo.errors import UserError


class Ceiling:
    """A round may have ``tokens`` in all and take ``minutes`` from now on; 0: no ceiling.

    Each of ``processes`` that draw may have an equal part of the tokens.
    """

    def __init__(self, *, tokens: int, minutes: float, processes: int = 1) -> None:
        self._tokens, self._minutes, self._processes = tokens, minutes, processes
        self._until = time.monotonic() + 60 * minutes

    def check(self, tokens: int) -> None:
        """Refuse to go on where a process that has drawn ``tokens`` so far may take no more.

        Raises:
            UserError: names the ceiling and how to go on.
        """
        if self._tokens and tokens * self._processes >= self._tokens:
            of = "its samples"
            if self._processes > 1:
                of = f"the samples of one of {self._processes} processes"
            raise UserError(
                f"the round's ceiling of tokens is reached: {of} have {tokens}, and "
                f"generate.max_tokens_total is {self._tokens}. They are kept: raise it to go on "
                "from there"
            )
        if self._minutes and time.monotonic() >= self._until:
            raise UserError(
                f"the round's ceiling of time is reached: it took {self._minutes:g} minutes "
                "(generate.max_minutes). What was drawn is kept: run the same again to go on from "
                "there"
            )
