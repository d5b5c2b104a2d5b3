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
    "training": {"epochs": 18, "checkpoint_every": 10},
    "probe": {"kl_prompts": 0, "completions": 0},
}
"""One step of 216 optimizer steps, whose state is saved on the way, and nothing after it."""


LONGEST = (
    *("test_training_and_a_paused", "test_a_slot_makes_one_step", "test_cancel_and_retry"),
    *("test_a_killed_worker", "test_a_form_becomes", "test_a_run_that_is_suspended"),
    *("test_a_flipped_byte", "test_children_that_ignore", "test_a_worker_that_is_asked"),
)
"""Tests that take a minute or more, the longest first."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let every process begin with one of the longest tests, so that none is left with one at the
    end: xdist gives each a part of the list to begin with, one after another."""
    here = Path(__file__).parent
    if not all(item.path.is_relative_to(here) for item in items):
        return

    def place(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(LONGEST) if item.name.startswith(name)), 99)

    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    ordered = sorted(items, key=place)
    parts = [ordered[start::processes] for start in range(processes)]
    items[:] = [item for part in sorted(parts, key=len) for item in part]


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
