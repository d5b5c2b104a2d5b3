"""The harness and the data of its tasks, where they are; else what needs them skips."""

import importlib.util
from pathlib import Path

import pytest

EVALS = (Path(__file__).resolve().parents[3] / ".." / "shared" / "evals").resolve()


@pytest.fixture(scope="session")
def evals() -> Path:
    """The folder of public task files and their data."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-evaluation-harness is not installed: `make test-real` installs it")
    if not EVALS.is_dir():
        pytest.skip(f"there is no {EVALS}")
    return EVALS
