"""Two runs of data that was changed: which pairs differ, in what, and which steps have them."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bench import Bench, Values
from forked_stages import forked_stages

from sdpo.chain.data import prepare_data
from sdpo.chain.execute import execute
from sdpo.chain.open_run import open_run
from sdpo.chain.plan import partition
from sdpo.chain.reserve import reserve
from sdpo.chain.tokens import tokenise
from sdpo.config.load import make_config
from sdpo.history.compare import Section, compare
from sdpo.history.target import Checkpoint
from sdpo.store.run_folder import RunFolder

ROWS = [
    {
        **{"prompt": f"Q {k}?", "chosen": f"good {k}", "rejected": f"bad {k}"},
        **{"score_chosen": 5, "score_rejected": 1},
    }
    for k in range(30)
]

PlanOf = Callable[[str, list[Values]], RunFolder]


@pytest.fixture
def plan_of(bench: Bench, tmp_path: Path) -> PlanOf:
    """``plan_of(name, rows)``: a run of these rows, up to its plan of two steps."""

    def plan_of(name: str, rows: list[Values]) -> RunFolder:
        path = tmp_path / "mine.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"limit": 0, "sources": [{"name": "mine", "path": str(path)}]}
        strategy = {"strategy": "stratified", "fractions": [0.5, 0.5]}
        changes = {"name": name, "data": data, "partition": strategy, "steps": []}
        with forked_stages(), open_run(make_config(bench.values(changes))) as context:
            nodes = (prepare_data, tokenise, reserve, partition)
            execute(context, [node(context) for node in nodes])
            return context.run

    return plan_of


def pairs_section(a: RunFolder, b: RunFolder) -> Section:
    (found,) = [s for s in compare(Checkpoint(a), Checkpoint(b)) if s.title.startswith("Pairs of")]
    return found


def step_of(run: RunFolder, row: int) -> int:
    """The step that the plan gives the pair of a row; 0 is the reserve."""
    pairs = pq.read_table(run.pairs).to_pylist()
    (pair,) = [pair["pair_id"] for pair in pairs if pair["row"] == row]
    plan = pq.read_table(run.plan).to_pylist()
    (step,) = [planned["step"] for planned in plan if planned["pair_id"] == pair]
    return int(step)


def test_a_changed_answer_is_named_with_its_line_its_texts_and_its_step(plan_of: PlanOf) -> None:
    before = plan_of("before", ROWS)
    plan = {step: row for row in range(1, 31) for step in [step_of(before, row)]}
    assert plan.keys() == {0, 1, 2}
    for step, row in plan.items():
        rows = [dict(each) for each in ROWS]
        rows[row - 1]["chosen"] = "better"
        after = plan_of(f"after-{step}", rows)
        section = pairs_section(before, after)
        assert section.title == "Pairs of mine: 1 of 30 pairs differs (1 changed)"
        (shown,) = section.differing().rows
        # The reserve is of prompts, and steps are drawn by pairs: another pair, another draw.
        now = step_of(after, row)
        where = f"step {now}" if now else "reserved: no step trained on it"
        assert shown.name == f"line {row}, chosen; {where}"
        assert (shown.a, shown.b) == (f"good {row - 1}", "better")
        assert (now == 0) == (step == 0)


def test_scores_are_of_a_pair_too_and_what_is_only_spelled_otherwise_is_no_difference(
    plan_of: PlanOf,
) -> None:
    before = plan_of("before", ROWS)
    scored = plan_of("scored", [{**ROWS[0], "score_chosen": 7}, *ROWS[1:]])
    (shown,) = pairs_section(before, scored).differing().rows
    assert shown.name.startswith("line 1, chosen_score; ")
    assert (shown.a, shown.b) == ("5.0", "7.0")
    spelled = plan_of("spelled", [{**row, "id": k} for k, row in enumerate(ROWS)])
    section = pairs_section(before, spelled)
    assert (section.title, section.rows) == ("Pairs of mine", ())


def test_pairs_that_come_or_go_shift_no_other_and_only_the_first_are_shown(
    plan_of: PlanOf,
) -> None:
    before = plan_of("before", ROWS)
    new = [{"prompt": f"New {k}?", "chosen": "yes", "rejected": "no"} for k in range(7)]
    after = plan_of("after", [*ROWS[:3], *ROWS[4:], *new])
    section = pairs_section(before, after)
    assert section.title == (
        "Pairs of mine: 8 of 36 pairs differ (7 added, 1 removed), the first 5"
    )
    rows = section.differing().rows
    assert rows[0].name.startswith("line 4, removed; ")
    assert (rows[0].a, rows[0].b) == ("Q 3?", None)
    assert [row.b for row in rows[1:]] == ["New 0?", "New 1?", "New 2?", "New 3?"]


def test_of_a_long_text_the_place_is_shown_where_it_differs(plan_of: PlanOf) -> None:
    text = "word " * 20
    before = plan_of("before", [{**ROWS[0], "chosen": f"{text}one"}, *ROWS[1:]])
    after = plan_of("after", [{**ROWS[0], "chosen": f"{text}two"}, *ROWS[1:]])
    (shown,) = pairs_section(before, after).differing().rows
    assert (shown.a, shown.b) == ("…word word word one", "…word word word two")
