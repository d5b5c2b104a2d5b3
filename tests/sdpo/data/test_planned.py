"""The plan with what steps have of their own: one table, and one numbering of token rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdpo.data.planned import Planned, StepData


def write_rows(path: Path, rows: list[tuple[str, int, int]]) -> Path:
    """Rows of id, token row and step."""
    ids, token_rows, steps = zip(*rows, strict=True)
    columns = {
        "pair_id": list(ids),
        "prompt_key": [f"prompt of {pair}" for pair in ids],
        "source": ["made"] * len(ids),
        "token_row": pa.array(token_rows, pa.int64()),
        "step": pa.array(steps, pa.int32()),
        "sampled": [True] * len(ids),
    }
    pq.write_table(pa.table(columns), path)
    return path


def pairs_of(path: Path, count: int) -> Path:
    pq.write_table(pa.table({"pair_id": [f"pair {n}" for n in range(count)]}), path)
    return path


def own(folder: Path, step: int, count: int, rows: list[tuple[str, int, int]]) -> StepData:
    return StepData(
        step=step,
        pairs=pairs_of(folder / f"pairs-{step}", count),
        usable=write_rows(folder / f"usable-{step}", rows),
        tokens=folder / f"tokens-{step}",
    )


@pytest.fixture
def plan(tmp_path: Path) -> Planned:
    """Ten pairs of the run, of which four are planned; steps 2 and 4 have pairs of their own."""
    return Planned(
        plan=write_rows(tmp_path / "plan", [("a", 9, 2), ("b", 4, 0), ("c", 0, 2), ("d", 7, 1)]),
        pairs=pairs_of(tmp_path / "pairs", 10),
        own=(
            own(tmp_path, 2, 5, [("e", 3, 2), ("f", 0, 2)]),
            own(tmp_path, 4, 2, [("g", 1, 4)]),
        ),
    )


def test_rows_are_numbered_on_from_file_to_file_and_a_step_s_own_come_last(plan: Planned) -> None:
    assert plan.rows_of(2).tolist() == [9, 0, 13, 10]
    assert plan.rows_of(4).tolist() == [16]
    assert plan.rows_of(0, 2, 1).tolist() == [4, 9, 0, 13, 10, 7]
    assert [rows.tolist() for rows in plan.rows_by_file(2)] == [[9, 0], [3, 0], []]


def test_the_table_has_the_same_rows(plan: Planned) -> None:
    table = plan.table()
    assert table["pair_id"].to_pylist() == list("abcdefg")
    of_step = table["token_row"].to_numpy()[table["step"].to_numpy() == 2]
    np.testing.assert_array_equal(of_step, plan.rows_of(2))
    assert plan.own_table(4).to_pylist() == table.slice(6).to_pylist()
    assert plan.own_pairs() == {2: 2, 4: 1}


def test_up_to_a_step_later_ones_have_nothing_of_their_own_and_numbers_stay(plan: Planned) -> None:
    assert plan.up_to(1).rows_of(2).tolist() == [9, 0]
    assert plan.up_to(3).rows_of(2, 4).tolist() == [9, 0, 13, 10]


def test_a_plan_without_any_is_the_plan_alone(plan: Planned) -> None:
    alone = Planned(plan=plan.plan, pairs=plan.pairs.with_name("not there"))
    assert alone.rows_of(0, 1).tolist() == [4, 7]
    assert alone.own_pairs() == {}
