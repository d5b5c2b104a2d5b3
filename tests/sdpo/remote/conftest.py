"""A store behind HTTP for every test that wants one."""

from collections.abc import Iterator

import pytest
from http_store import Store, http_store


@pytest.fixture
def store() -> Iterator[Store]:
    """One that is empty."""
    with http_store() as served:
        yield served
