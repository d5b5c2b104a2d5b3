"""A plan is a table of pair and step: a source that two steps name is trained on in both."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from bench import Bench, Outcome, Values
from forked_stages import forked_stages
from histories import replayed, write_new_pairs

from sdpo.data.parquet_columns import Columns
from sdpo.history.extend import extend_run
from sdpo.history.verify import verify_run
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json

GROUPS = [["questions"], ["requests"], ["requests", "questions"]]


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Outcome:
    return Bench(tmp_path_factory.mktemp("repeated"), tiny_recipe).run(
        {
            "partition": {"groups": GROUPS},
            "training": {"max_steps": 2},
            "probe": {"completions": 0, "max_pairs": 8},
        }
    )


def entries(run: Outcome) -> dict[int, list[str]]:
    """The pairs of each step by the plan."""
    table = pq.read_table(run.run.plan, columns=["pair_id", "step"]).to_pylist()
    found: dict[int, list[str]] = {}
    for row in table:
        found.setdefault(row["step"], []).append(row["pair_id"])
    return found


def test_every_step_has_the_pairs_of_its_sources_and_the_reserve_has_none_of_them(
    repeated: Outcome,
) -> None:
    found = entries(repeated)
    assert all(len(set(pairs)) == len(pairs) for pairs in found.values())
    assert set(found[3]) == set(found[1]) | set(found[2])
    assert not set(found[0]) & set(found[3])
    plan = repeated.json("plan.json")
    assert plan["pairs"] == len(found[3])
    assert [step["pairs"] for step in plan["steps"]] == [len(found[step]) for step in (1, 2, 3)]
    assert [overlap["steps"] for overlap in plan["overlap"]] == [[1, 3], [2, 3]]


def test_each_step_starts_where_policy_and_reference_agree(repeated: Outcome) -> None:
    for step in (1, 2, 3):
        record = repeated.record(f"step-{step}")
        assert record["gate"]["loss"] == pytest.approx(np.log(2), abs=1e-6)
        reference = pq.read_table(repeated.folder / f"step-{step}" / "reference.parquet")
        assert reference["pair_id"].to_pylist() == entries(repeated)[step]


def test_gamma_is_given_for_each_partition_and_a_row_is_scored_once_under_a_model(
    repeated: Outcome,
) -> None:
    probes = [entry["probe"] for entry in repeated.json("step-3/gamma.json")]
    assert {"D_1", "D_2", "D_3"} <= set(probes)
    table = pq.read_table(repeated.run.probes / "M_2.parquet").to_pylist()
    by_pair: dict[str, set[tuple[float, float]]] = {}
    for row in table:
        by_pair.setdefault(row["pair_id"], set()).add((row["chosen_logps"], row["rejected_logps"]))
    assert all(len(values) == 1 for values in by_pair.values())
    assert max(len([r for r in table if r["pair_id"] == p]) for p in by_pair) == 2
    caches = sorted((repeated.folder.parents[1] / "cache" / "logps").iterdir())
    assert caches
    for cache in caches:
        rows = [
            row
            for part in cache.glob("*.parquet")
            for row in pq.read_table(part)["row_digest"].to_pylist()
        ]
        assert len(set(rows)) == len(rows) > 0


def test_the_run_is_whole_and_its_last_step_is_replayed_to_the_bit(repeated: Outcome) -> None:
    assert verify_run(repeated.run).faults == []
    result, _ = replayed(repeated.run, step=3)
    assert result.comparison.verdict == "bitwise identical"


def test_a_chain_that_grows_keeps_what_was_repeated(repeated: Outcome, tmp_path: Path) -> None:
    new = write_new_pairs(tmp_path / "new.jsonl", *range(30))
    with forked_stages():
        grown = extend_run(repeated.run, [str(new)], name="grown")
    assert grown.chain is not None
    more = Outcome(grown.chain, [])
    assert {"step-1", "step-2", "step-3"} <= set(more.result.shared)
    assert [entries(more)[step] for step in (1, 2, 3)] == [
        entries(repeated)[step] for step in (1, 2, 3)
    ]
    assert len(entries(more)[4]) > 20
    assert verify_run(more.run).faults == []


@pytest.mark.slow
def test_a_chain_with_rehearsal_is_whole_measures_new_pairs_alone_and_grows_the_same_way(
    tmp_path: Path, tiny_recipe: Values
) -> None:
    bench = Bench(tmp_path, tiny_recipe)
    run = bench.run(
        {
            "partition": {"rehearse": 0.25},
            "training": {"max_steps": 2},
            "probe": {"completions": 0, "max_pairs": 64},
        }
    )
    of_step = entries(run)
    again = set(of_step[1]) & set(of_step[2])
    assert len(again) == round(0.25 * (len(of_step[2]) - len(again)))
    plan = Columns(run.run.plan)
    table = pq.read_table(run.run.plan, columns=["pair_id", "step", "sampled"]).to_pylist()
    drawn = {row["pair_id"] for row in table if row["step"] == 2 and row["sampled"]}
    assert drawn == set(of_step[2]) - again
    assert plan.rows == sum(map(len, of_step.values()))
    reference = pq.read_table(run.folder / "step-2" / "reference.parquet")
    assert reference["pair_id"].to_pylist() == of_step[2]
    assert verify_run(run.run).faults == []
    new = write_new_pairs(tmp_path / "new.jsonl", *range(20))
    with forked_stages():
        grown = extend_run(run.run, [str(new)], name="grown")
    assert grown.chain is not None
    (step,) = (s for s in read_json(grown.chain.run / "plan.json")["steps"] if s["step"] == 3)
    earlier = int(step["contents"].split(" + ")[1].removesuffix(" earlier pairs"))
    assert earlier == round(0.25 * (step["pairs"] - earlier)) > 0
    assert verify_run(RunFolder(grown.chain.run)).faults == []
