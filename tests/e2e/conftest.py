"""A server and a worker with a password, one pair for all tests of a process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import Values, merged
from desk import Desk, desk_in
from strangers import fill

LONG = {
    "partition": {"strategy": "single"},
    "training": {"epochs": 25, "checkpoint_every": 10},
}
"""One step of 300 optimizer steps, whose state is saved on the way."""


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """It runs for the whole session; a test that ends a part of it starts it again."""
    folder = tmp_path_factory.mktemp("desk")
    fill(folder)  # nothing of what the tests do minds it
    with desk_in(folder) as desk:
        yield desk


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Folder of the runs of a test."""
    return tmp_path / "runs"


@pytest.fixture
def recipe(tiny_recipe: Values, runs: Path, desk: Desk) -> Any:
    """``recipe(name, changes)``: the parameters of a run; caches are shared by all tests."""

    def make(name: str, changes: Values | None = None) -> Values:
        where = {
            "name": name,
            "store": {"runs_dir": str(runs), "cache_dir": str(desk.folder / "cache")},
        }
        return merged(merged(tiny_recipe, where), changes or {})

    return make


@pytest.fixture
def long(recipe: Any) -> Values:
    """A run that trains for some time."""
    made: Values = recipe("long", LONG)
    return made
