"""The command line, called in this process."""

import pytest
from command_line import Sdpo, caller


@pytest.fixture
def sdpo(capsys: pytest.CaptureFixture[str]) -> Sdpo:
    """``sdpo("run", recipe, ...)``: its exit code and what it printed."""
    return caller(capsys)
