"""A run that trains on two nodes is cancelled at the server: nothing is left on either."""

import time
from pathlib import Path
from typing import Any

import pytest
from desk import Desk, wait_until
from processes import is_free, stages_of
from second_node import free_port, second_node

from sdpo.store.run_folder import RunFolder

from .conftest import LONG

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_run_on_two_nodes_that_is_cancelled_leaves_nothing_on_either(
    desk: Desk, recipe: Any, runs: Path, tmp_path: Path
) -> None:
    with second_node(tmp_path) as node:
        port = free_port()
        launch = node.launch(port).model_dump(mode="json")
        with node.joined(port) as join:
            run = desk.submit(
                "sdpo-align-full/align-full", recipe("long", {**LONG, "launch": launch})
            )
            run.until_training(runs / "long")
            assert len(node.processes()) > 1, "a rank runs there"
            asked_s = time.time()
            run.cancel()
            assert run.wait(60, ("CANCELLED",)) == "CANCELLED"
            assert run.ended_s - asked_s < 35
            wait_until(lambda: not node.processes(), 35, "the end of the other node's processes")
            print(f"nothing was left after {time.time() - asked_s:.1f} s")
            assert time.time() - asked_s < 35
            assert join.wait(1) == 0
        wait_until(lambda: not run.all_processes(), 1, "the end of its processes")
        assert stages_of(runs / "long") == []
        wait_until(lambda: is_free(RunFolder(runs / "long").lock_file), 1, "a free run")
