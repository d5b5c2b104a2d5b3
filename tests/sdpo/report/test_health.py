"""What the report says of the chain's health, from runs whose numbers are known."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sdpo.report import summarise, write_report
from sdpo.report.health import displacement_table, lengths_table, measure_health, retention_table
from sdpo.report.load import load_run

MakeRun = Callable[..., Path]


@pytest.mark.parametrize(
    ("effect", "kept", "displaced"),
    [
        (8.0, "M_2 keeps what step 1 taught, and prefers it more", "No likelihood displacement"),
        (-8.0, "M_2 has lost some of what step 1 taught", "Likelihood displacement"),
    ],
)
def test_the_report_says_what_is_kept_and_whether_chosen_answers_became_less_likely(
    make_run: MakeRun, effect: float, kept: str, displaced: str
) -> None:
    run = make_run(effect=effect)
    said = summarise(run).health
    assert said[0].startswith(kept)
    assert "arXiv 2606.19744" in said[0]
    assert said[1].startswith(f"{displaced} on the reserve of all sources")
    assert "arXiv 2410.08847" in said[1]
    assert said[-1].startswith("Too few completions to tell whether M_2 writes longer")
    page = write_report(run).read_text(encoding="utf-8")
    assert "Health of the chain" in page
    assert "arXiv 2406.11817" in page


def test_retention_reads_the_reserve_of_the_sources_of_the_step(make_run: MakeRun) -> None:
    health = measure_health(load_run(make_run()))
    whole = [r for r in health.retention if r.quartile is None]
    assert [(r.step, r.model, r.pairs) for r in whole] == [(1, 2, 48)], "orca's, of which D_1 is"
    assert [(d.model, d.probe, d.pairs) for d in health.displacement] == [
        (1, "reserve of all sources", 48 + 220),
        (1, "D_1", 260),
        (2, "reserve of all sources", 48 + 220),
        (2, "D_2", 512),
    ]


def test_every_row_of_the_tables_of_health_has_all_columns(make_run: MakeRun) -> None:
    health = measure_health(load_run(make_run()))
    for table in (retention_table(health), displacement_table(health), lengths_table(health)):
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_a_run_of_which_one_model_was_measured_has_no_health_to_tell(make_run: MakeRun) -> None:
    run = make_run(done=0)
    assert summarise(run).health == ()
