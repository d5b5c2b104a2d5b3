"""Runs for the report's tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes such a run into a new folder; takes the options of :func:`write_run`."""

    def make(name: str = "walk", **options: Any) -> Path:
        return write_run(tmp_path / name, **options)

    return make
