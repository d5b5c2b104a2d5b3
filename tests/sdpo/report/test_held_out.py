"""What a round did on held-out prompts is said in words, and so is that nothing is shown."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdpo.report.held_out import SHOWN, held_tables
from sdpo.store.run_folder import RunFolder

PROMPTS = 60


def run_with(folder: Path, *scores: np.ndarray) -> RunFolder:
    """A run whose models M_0, M_1, ... have answered held-out prompts with these scores."""
    run = RunFolder(folder / "run")
    for model, of_prompts in enumerate(scores):
        path = run.evaluations / f"M_{model}" / "held-x.parquet"
        path.parent.mkdir(parents=True)
        rows = [
            {
                "prompt_key": f"{number:032x}",
                "prompt": [{"role": "user", "content": f"Question {number}?"}],
                "text": f"Answer {number} of M_{model}.",
                "tokens": 5,
                "finished": True,
                "score": float(score),
            }
            for number, score in enumerate(of_prompts)
        ]
        pq.write_table(pa.Table.from_pylist(rows), path)
        outputs = {"model": f"M_{model}", "source": "round", "judge": "a rule", "asked": "x"}
        node = f"held-M_{model}-x"
        run.write_record(node, {"node": node, "outputs": outputs}, files=[path])
    return run


@pytest.mark.parametrize(
    ("gain", "prompts", "said"),
    [
        (0.3, PROMPTS, "the score rose; it won more than half of the prompts."),
        (-0.3, PROMPTS, "the score fell; it won less than half of the prompts."),
        (0.0, PROMPTS, "no change of the score is shown; that it won more or less than half is"),
        (0.3, 12, "no change of the score is shown; that it won more or less than half is"),
    ],
)
def test_what_a_round_is_shown_to_have_done_is_said(
    tmp_path: Path, gain: float, prompts: int, said: str
) -> None:
    """The same scores in another order, and more or less on top, of many prompts and of few."""
    drawn = np.random.default_rng(0)
    before = drawn.normal(0, 0.1, prompts)
    run = run_with(tmp_path, before, np.roll(before, 1) + gain)
    summary, shown = held_tables(run)
    assert f"M_1 over S: {said}" in summary.note
    assert len(shown.rows) == SHOWN


def test_a_score_may_rise_without_more_prompts_won(tmp_path: Path) -> None:
    """A few prompts gain much, and as many as not gain nothing."""
    gains = np.where(np.arange(PROMPTS) % 2, 1.0, -0.01)
    run = run_with(tmp_path, np.zeros(PROMPTS), gains)
    (summary, _) = held_tables(run)
    assert "the score rose; that it won more or less than half is not shown." in summary.note
