"""What is kept of a run elsewhere is what a run writes, and nothing else is taken for it."""

from pathlib import Path

import pytest
from foreign import OF_A_RUN

from sdpo.store.kept_files import form_of_group
from sdpo.store.run_folder import RunFolder

STAYS = ("logs/", ".lock", ".sdpo.json", "remote.json", ".tmp-")
"""A machine keeps these to itself."""


@pytest.mark.parametrize("name", OF_A_RUN)
def test_every_file_that_a_run_writes_can_be_received_or_stays_on_its_machine(name: str) -> None:
    record = ("nodes/plan.json", "nodes/plan.json.sha256")
    fault = form_of_group(RunFolder(Path("/runs/tiny")), "plan", [*record, name])
    assert bool(fault) is name.startswith(STAYS), fault
