"""The table in docs/strategies.md says of every cell what the code does with it."""

import re
from pathlib import Path
from typing import get_args

import pytest

from sdpo.config import LaunchConfig, TrainingConfig
from sdpo.config.impossible import impossible_launch
from sdpo.config.running import LaunchStrategy, Offload

PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text(encoding="utf-8")
REASONS = dict(re.findall(r'^(\d)\. "(.*)"$', PAGE, re.MULTILINE))
HEAD = re.search(r"^\| strategy \| trains \|(.*)\|$", PAGE, re.MULTILINE).group(1)
COLUMNS = [tuple(column.strip().split(", ")) for column in HEAD.split("|")]
ROWS = re.findall(r"^\| (\w+) \| (full|LoRA) \|(.*)\|$", PAGE, re.MULTILINE)
CELLS = {
    (strategy, trains, *column): cell.strip()
    for strategy, trains, cells in ROWS
    for column, cell in zip(COLUMNS, cells.split("|"), strict=True)
}


def refusals(strategy: str, trains: str, offload: str, device: str) -> list[str]:
    launch = LaunchConfig(
        strategy=strategy,
        processes=1 if strategy == "single" else 2,
        offload=offload,
        device=device,
    )
    training = TrainingConfig(lora_r=4 if trains == "LoRA" else 0)
    return impossible_launch(launch, {"training": training})


def test_the_table_has_every_cell():
    strategies = set(get_args(LaunchStrategy)) - {"auto"}
    expected = {
        (strategy, trains, offload, device)
        for strategy in strategies
        for trains in ("full", "LoRA")
        for offload in get_args(Offload)
        for device in ("cpu", "cuda")
    }
    assert CELLS.keys() == expected
    assert set(CELLS.values()) == {"yes", "GPU", *(f"no ({number})" for number in REASONS)}


@pytest.mark.parametrize("cell", CELLS, ids=", ".join)
def test_a_cell_is_refused_where_the_table_says_so_and_for_its_reason(cell):
    said, told = CELLS[cell], refusals(*cell)
    if not said.startswith("no"):
        assert told == []
        assert said == ("yes" if cell[-1] == "cpu" else "GPU")
        return
    assert any(REASONS[said[4]] in line for line in told), told
