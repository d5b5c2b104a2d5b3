"""The command line, called in this process, and a Prefect server for flows."""

from collections.abc import Iterator

import pytest
from command_line import Sdpo, caller


@pytest.fixture
def sdpo(capsys: pytest.CaptureFixture[str]) -> Sdpo:
    """``sdpo("run", recipe, ...)``: its exit code and what it printed."""
    return caller(capsys)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One for all flows of this process: what sends events to it never looks for another."""
    # Prefect is loaded by the tests that want it alone: it takes seconds.
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=90):
        yield
