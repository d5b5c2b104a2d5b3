"""The report shows every round, and says where the judge is pleased and the reserve is not."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import write_run

from sdpo.report import write_report
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json, write_json

OVER = "The judge&#39;s score rises while accuracy on the reserve falls"


def page(folder: Path, *, effect: float, scores: tuple[float, float]) -> str:
    """The report of a run of random numbers whose two steps were generated."""
    run = RunFolder(write_run(folder, effect=effect))
    plan = read_json(run.plan_file)
    for step, score in enumerate(scores, 1):
        plan["steps"][step - 1]["generated"] = {"source": "round", "round": step}
        made = {"prompts": 40, "samples": 160, "pairs": 0, "score": score, "margin": 0.5}
        means = {"tokens": 17.25, "finished": 0.975, "distinct_2": 0.31}
        left = {"samples_left_out": {"repeated": 8}, "pairs_not_made": {"tie": 3}}
        usable = run.step(step) / "usable.parquet"
        usable.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"pair_id": pa.array([], pa.string())}), usable)
        outputs = {**made, **means, **left}
        run.write_record(f"data-{step}", {"node": f"data-{step}", "outputs": outputs}, files=[])
    write_json(run.plan_file, plan)
    return write_report(folder).read_text(encoding="utf-8")


def test_a_round_is_shown_with_what_the_judge_made_of_it(tmp_path: Path) -> None:
    text = page(tmp_path / "run", effect=4.0, scores=(0.123, 0.456))
    assert "Rounds: what the models wrote for the next step" in text
    for cell in ("0.123", "0.456", "17.2", "97.5%", "31.0%", "5.0%"):
        assert cell in text
    assert OVER not in text


@pytest.mark.parametrize(("scores", "is_told"), [((0.1, 0.6), True), ((0.6, 0.1), False)])
def test_a_score_that_rises_while_accuracy_falls_gets_a_sentence(
    tmp_path: Path, scores: tuple[float, float], is_told: bool
) -> None:
    text = page(tmp_path / "run", effect=-4.0, scores=scores)
    assert (OVER in text) == is_told
