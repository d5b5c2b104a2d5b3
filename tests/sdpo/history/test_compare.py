"""Two runs side by side."""

from pathlib import Path

import pytest
from bench import Bench
from histories import origin, replayed

from sdpo.errors import UserError
from sdpo.history.compare import Section, compare, flat
from sdpo.history.target import Checkpoint


def by_title(sections: list[Section]) -> dict[str, Section]:
    return {section.title: section.differing() for section in sections}


def test_a_run_differs_from_itself_in_nothing(finished_copy: Bench) -> None:
    side = Checkpoint(origin(finished_copy))
    sections = compare(side, side)
    assert [s.rows for s in by_title(sections).values()] == [()] * len(sections)
    assert all(section.rows for section in sections), "with --all everything is shown"


def test_what_a_replay_changed_is_shown_step_by_step(finished_copy: Bench) -> None:
    _, again = replayed(origin(finished_copy), "training.beta=0.3", step=2)
    found = by_title(compare(Checkpoint(origin(finished_copy)), Checkpoint(again.run)))
    (row,) = found["Settings of step 2"].rows
    assert (row.name, row.a, row.b) == ("beta", 0.1, 0.3)
    assert found["Data"].rows == found["Settings of step 1"].rows == ()
    assert found["Metrics of step 1"].rows == found["Gamma of M_1, in nats"].rows == ()
    assert found["Environment of step 2"].rows == ()
    names = [row.name for row in found["Metrics of step 2"].rows]
    assert "last rewards/margins" in names
    assert [row.name for row in found["Inputs and outputs of step 2"].rows] == ["model published"]
    assert any(row.name == "D_2: mean" for row in found["Gamma of M_2, in nats"].rows)
    assert "steps.1.beta" in [row.name for row in found["Configuration"].rows]


def test_two_steps_of_one_run_are_compared(finished_copy: Bench) -> None:
    run = origin(finished_copy)
    found = by_title(compare(Checkpoint(run, 1), Checkpoint(run, 2)))
    assert found["Settings of step 1 and step 2"].rows == ()
    assert "reference" in [
        row.name for row in found["Inputs and outputs of step 1 and step 2"].rows
    ]
    with pytest.raises(UserError, match="no complete step 5"):
        compare(Checkpoint(run, 5), Checkpoint(run))


def test_a_side_without_a_step_has_nothing_there(finished_copy: Bench, tmp_path: Path) -> None:
    _, again = replayed(origin(finished_copy), step=1, only=True)
    found = by_title(compare(Checkpoint(origin(finished_copy)), Checkpoint(again.run)))
    assert all(row.b is None for row in found["Settings of step 2"].rows)
    assert found["Settings of step 2"].rows


def test_nested_settings_are_flat_by_name() -> None:
    value = {"data": {"sources": [{"name": "a", "path": "x"}], "limit": 1}, "fractions": [0.5, 0.5]}
    assert flat(value) == {
        "data.sources.a.name": "a",
        "data.sources.a.path": "x",
        "data.limit": 1,
        "fractions": [0.5, 0.5],
    }
