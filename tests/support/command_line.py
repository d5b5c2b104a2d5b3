"""Calling ``sdpo`` in this process, as its console script does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from forked_stages import forked_stages

from flows.cli.app import run_app


@dataclass(frozen=True, slots=True)
class Called:
    """What a call of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """Everything it printed, with line breaks and runs of blanks as one blank."""
        return " ".join(f"{self.out} {self.err}".split())


Sdpo = Callable[..., Called]


def caller(capsys: pytest.CaptureFixture[str]) -> Sdpo:
    """``sdpo("run", recipe, ...)``; ``first`` is code that its stages run before their own."""

    def sdpo(*arguments: Any, first: str = "") -> Called:
        capsys.readouterr()
        with forked_stages(first=first):
            code = run_app([str(argument) for argument in arguments])
        return Called(code, *capsys.readouterr())

    return sdpo
