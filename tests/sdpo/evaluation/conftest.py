"""The harness and the data of its tasks, where they are; else what needs them skips."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdpo.system.permissions import TASK_FOLDERS

EVALS = (Path(__file__).resolve().parents[3] / ".." / "shared" / "evals").resolve()


@pytest.fixture(scope="session")
def evals() -> Path:
    """The folder of public task files and their data."""
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-evaluation-harness is not installed: `make test-real` installs it")
    if not EVALS.is_dir():
        pytest.skip(f"there is no {EVALS}")
    return EVALS


@pytest.fixture(scope="module")
def permitted(evals: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The task files, permitted; what the datasets library makes of them is put elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TASK_FOLDERS, str(evals))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        yield evals
