"""A chain that grows: what was is carried over, what is new becomes one more step."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bench import Bench, DemoFiles, Outcome, Values
from forked_stages import forked_stages
from histories import contents, origin, replayed

from sdpo.errors import ConfigError, RunExistsError, UserError
from sdpo.events import Event
from sdpo.history.extend import Extension, extend_run
from sdpo.history.replay import look, plan_replay
from sdpo.history.verify import verify_run
from sdpo.hooks import Host
from sdpo.store.run_folder import RunFolder


def extended(run: RunFolder, *sources: Path, **options: Any) -> tuple[Extension, Outcome]:
    events: list[Event] = []
    with forked_stages():
        found = extend_run(
            run, [str(s) for s in sources], host=Host(listen=events.append), **options
        )
    assert found.chain is not None
    return found, Outcome(found.chain, events)


def rows_of(path: Path) -> list[Values]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Values]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def grown_bench(
    finished_bench: Bench, finished: Outcome, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    assert finished.folder.is_dir()
    return finished_bench.copy_to(tmp_path_factory.mktemp("grown"))


@pytest.fixture(scope="module")
def new_data(grown_bench: Bench, demo_files: DemoFiles) -> Path:
    """Dialogues, some pairs that the run has, one with its sides swapped, and reserved prompts."""
    plan = pq.read_table(origin(grown_bench).plan).to_pylist()
    pairs = {r["pair_id"]: r for r in pq.read_table(origin(grown_bench).pairs).to_pylist()}
    held = [pairs[row["pair_id"]] for row in plan if row["step"] == 0][:2]
    trained = [pairs[row["pair_id"]] for row in plan if row["step"] == 1][:3]

    def as_row(pair: Values) -> Values:
        return {side: pair[side] for side in ("prompt", "chosen", "rejected")}

    swapped = as_row(trained[0]) | {
        "chosen": trained[0]["rejected"],
        "rejected": trained[0]["chosen"],
    }
    of_held = [
        as_row(p) | {"chosen": [{"role": "assistant", "content": "Quite another answer."}]}
        for p in held
    ]
    fresh = [
        {
            "prompt": [{"role": "user", "content": f"Count to {n}, please."}],
            "chosen": [{"role": "assistant", "content": f"Here is {n}, as you like it."}],
            "rejected": [{"role": "assistant", "content": f"No. Not {n}."}],
        }
        for n in range(30)
    ]
    known = [as_row(pair) for pair in trained[1:]]
    return write(grown_bench.folder / "new.jsonl", [*fresh, *known, swapped, *of_held])


@pytest.fixture(scope="module")
def grown(grown_bench: Bench, new_data: Path) -> tuple[Extension, Outcome]:
    return extended(origin(grown_bench), new_data, overrides=["training.beta=0.2"], name="grown")


def test_the_new_pairs_become_one_more_step_from_the_last_model(
    grown: tuple[Extension, Outcome], finished: Outcome
) -> None:
    found, run = grown
    assert found.new_pairs == 30
    assert run.result.steps == 3
    third = run.record("step-3")
    assert third["inputs"]["reference"] == finished.record("step-2")["outputs"]["model"]
    assert third["training"]["beta"] == 0.2
    assert run.json("plan.json")["steps"][2]["sources"] == {"new": third["pairs"]}


def test_the_earlier_steps_and_their_plan_are_shared_as_they_are(
    grown: tuple[Extension, Outcome], finished: Outcome
) -> None:
    _, run = grown
    assert {"step-1", "step-2"} <= set(run.result.shared)
    assert {"step-1", "step-2"}.isdisjoint(run.result.executed)
    for step in (1, 2):
        assert run.record(f"step-{step}")["identity"] == finished.record(f"step-{step}")["identity"]
        mine, theirs = (r.json("plan.json")["steps"][step - 1] for r in (run, finished))
        assert mine == theirs
        assert (run.run.model(step) / "model.safetensors").stat().st_nlink > 1


def test_what_is_not_new_is_listed_with_the_run_that_has_it(
    grown: tuple[Extension, Outcome],
) -> None:
    _, run = grown
    lines = [row for row in rows_of(run.run.rejected) if row["source"] == "new"]
    reasons = sorted((row["reason"], row["detail"]) for row in lines)
    assert [reason for reason, _ in reasons] == ["contradictory", "duplicate", "duplicate"]
    assert all("run tiny has the same pair" in detail for _, detail in reasons)


def test_reserved_prompts_stay_reserved_and_the_new_data_adds_its_own_probe(
    grown: tuple[Extension, Outcome], finished: Outcome
) -> None:
    _, run = grown
    before, after = (pq.read_table(r.run.plan).to_pylist() for r in (finished, run))
    held = {row["prompt_key"] for row in before if row["step"] == 0}
    assert held.isdisjoint(row["prompt_key"] for row in after if row["step"])
    mine = [row for row in after if row["step"] == 0 and row["source"] == "new"]
    assert sum(row["prompt_key"] in held for row in mine) == 2, "those of reserved prompts"
    assert sum(row["prompt_key"] not in held for row in mine) == 3, "a tenth of the new ones"
    old = {row["pair_id"]: row["step"] for row in before}
    assert all(old[row["pair_id"]] == row["step"] for row in after if row["pair_id"] in old)
    probes = {e["probe"] for e in run.json("step-3/gamma.json")}
    assert probes == {"reserve:questions", "reserve:requests", "reserve:new", "D_1", "D_2", "D_3"}


def test_only_new_rows_are_scored_under_the_earlier_models(
    grown: tuple[Extension, Outcome],
) -> None:
    _, run = grown
    assert run.record("step-3")["scored_rows"]["computed"] == 0, "M_2's probe had them"


def test_the_origin_is_not_touched_and_a_second_call_does_nothing(
    grown_bench: Bench, grown: tuple[Extension, Outcome], finished: Outcome, new_data: Path
) -> None:
    assert contents(origin(grown_bench).path) == contents(finished.folder)
    _, again = extended(
        origin(grown_bench), new_data, overrides=["training.beta=0.2"], name="grown"
    )
    assert again.result.executed == ()
    assert grown[1].result.executed


def test_a_run_that_was_extended_is_extended_again(
    grown_bench: Bench, grown: tuple[Extension, Outcome]
) -> None:
    rows = rows_of(grown_bench.folder / "new.jsonl")
    more = [
        {
            "prompt": [{"role": "user", "content": f"Spell {n} out."}],
            "chosen": [{"role": "assistant", "content": f"The number {n}."}],
            "rejected": [{"role": "assistant", "content": f"{n}!"}],
        }
        for n in range(20)
    ]
    same_name = grown_bench.folder / "more"
    same_name.mkdir()
    _, twice = extended(grown[1].run, write(same_name / "new.jsonl", rows + more), name="twice")
    assert twice.result.steps == 4
    assert {"step-1", "step-2", "step-3"} <= set(twice.result.shared)
    assert [s["name"] for s in twice.run.read_run().config["data"]["sources"]][2:] == [
        "new",
        "new-2",
    ]
    last = twice.json("plan.json")["steps"][3]
    assert list(last["sources"]) == ["new-2"]
    _, again = replayed(twice.run, step=4, name="again")
    assert again.result.executed == ("step-4", "report")
    assert again.record("step-4")["outputs"] == twice.record("step-4")["outputs"]


def test_the_extended_run_stands_without_its_origin(
    grown_bench: Bench, grown: tuple[Extension, Outcome], tmp_path: Path
) -> None:
    moved = tmp_path / "runs"
    moved.mkdir()
    shutil.copytree(grown[1].folder, moved / "grown")
    _, again = replayed(RunFolder(moved / "grown"), step=3, name="again")
    assert again.result.executed[-2:] == ("step-3", "report")
    assert again.record("step-3")["outputs"] == grown[1].record("step-3")["outputs"]


def test_data_without_anything_new_makes_no_run(grown_bench: Bench, demo_files: DemoFiles) -> None:
    before = sorted(path.name for path in grown_bench.runs.iterdir())
    few = write(grown_bench.folder / "few.jsonl", rows_of(demo_files.questions)[:40])
    run = origin(grown_bench)
    known = {
        (row["prompt"][0]["content"], row["chosen"][0]["content"])
        for row in pq.read_table(run.pairs).to_pylist()
    }
    rows = [r for r in rows_of(few) if (r["prompt"], r["chosen"]) in known]
    assert rows
    found = extend_run(run, [str(write(few, rows))])
    assert (found.new_pairs, found.chain) == (0, None)
    assert sorted(path.name for path in grown_bench.runs.iterdir()) == before


def test_fewer_new_pairs_than_wanted_make_no_run(grown_bench: Bench, new_data: Path) -> None:
    found = extend_run(origin(grown_bench), [str(new_data)], min_new_pairs=31)
    assert (found.new_pairs, found.chain) == (30, None)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("partition.seed=7", r"partition\.seed: 42 -> 7"),
        ("steps.0.beta=0.7", r"steps\.0\.beta: 0\.1 -> 0\.7"),
        ("launch.threads=2", r"launch\.threads: 1 -> 2"),
        ("data.max_length=200", r"data\.max_length: 160 -> 200"),
    ],
)
def test_what_is_carried_over_cannot_change(
    grown_bench: Bench, new_data: Path, override: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=f"carries over cannot change: {named}"):
        extend_run(origin(grown_bench), [str(new_data)], overrides=[override], name="other")
    assert not (grown_bench.runs / "other").exists()


def test_a_name_that_is_taken_and_a_run_that_is_not_complete_are_refused(
    grown_bench: Bench, new_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunExistsError, match="tiny exists and is another run"):
        extend_run(origin(grown_bench), [str(new_data)], name="tiny")
    shutil.copytree(origin(grown_bench).path, tmp_path / "half")
    (tmp_path / "half" / "step-2" / "record.json").unlink()
    with pytest.raises(UserError, match=r"step 2 is not complete: finish it first"):
        extend_run(RunFolder(tmp_path / "half"), [str(new_data)])


def test_s_and_a_drawn_plan_are_carried_over(
    tmp_path: Path, tiny_recipe: Values, new_data: Path
) -> None:
    run = Bench(tmp_path, tiny_recipe).run(
        {
            "supervised": {"enabled": True, "max_steps": 1},
            "partition": {"strategy": "random", "fractions": [0.5, 0.5]},
            "training": {"max_steps": 1},
            "probe": {"completions": 0},
        }
    )
    _, more = extended(run.run, new_data, name="more")
    assert {"step-0", "step-1", "step-2"} <= set(more.result.shared)
    assert more.result.steps == 3
    for step in (0, 1, 2):
        assert more.record(f"step-{step}")["outputs"] == run.record(f"step-{step}")["outputs"]
    with pytest.raises(UserError, match="replay step 0 there"):
        replayed(more.run, step=0)


def test_what_a_measured_curriculum_rests_on_is_kept_when_it_is_replayed_and_extended(
    tmp_path: Path, tiny_recipe: Values, new_data: Path
) -> None:
    """Gamma of every pair under S is measured once, and stands in the plan beside its pair."""
    run = Bench(tmp_path, tiny_recipe).run(
        {
            "partition": {"strategy": "reference_margin", "fractions": [0.5, 0.5]},
            "training": {"max_steps": 1},
            "probe": {"completions": 0},
        }
    )
    assert "features" in run.result.executed
    lines = {line.node: line.action for line in look(plan_replay(run.run, step=2))}
    assert (lines["features"], lines["plan"], lines["step-1"]) == ("REUSE",) * 3
    result, again = replayed(run.run, step=2)
    assert result.comparison.verdict == "bitwise identical"
    assert {"features", "plan", "step-1"} <= set(again.result.shared)
    _, more = extended(run.run, new_data, name="more")
    assert more.result.steps == 3
    assert {"step-1", "step-2"} <= set(more.result.shared)
    before, after = (
        {row["pair_id"]: row["feature:gamma"] for row in pq.read_table(r.run.plan).to_pylist()}
        for r in (run, more)
    )
    assert {pair: after[pair] for pair in before} == before
    assert all(math.isnan(value) for pair, value in after.items() if pair not in before)
    model = run.json("plan.json")["features"]["gamma"]["scorer"]
    assert more.json("plan.json")["features"]["gamma"]["scorer"] == model
    for made in (run, again, more):
        assert verify_run(made.run).faults == []


def test_a_limit_draws_of_what_is_new_and_fits(bench: Bench, tmp_path: Path) -> None:
    """Pairs that the run has, and pairs that are too long, take no place of those drawn."""
    limit = 40
    run = bench.run({"data": {"limit": limit}}).run
    known = [
        {side: pair[side] for side in ("prompt", "chosen", "rejected")}
        for pair in pq.read_table(run.pairs).to_pylist()
    ]
    nothing = extend_run(run, [str(write(tmp_path / "known.jsonl", known))], name="nothing")
    assert nothing.new_pairs == 0
    fresh, long = (
        [
            {"prompt": f"Say {n}. {filling}", "chosen": f"It is {n}.", "rejected": f"Not {n}."}
            for n in range(60)
        ]
        for filling in ("Please.", "word " * 400)
    )
    data = write(tmp_path / "new.jsonl", [*known, *long, *fresh])
    _, grown = extended(run, data, name="limited")
    taken = pq.read_table(grown.run.pairs).to_pylist()
    texts = [p["prompt"][0]["content"] for p in taken if p["source"] == "new"]
    assert len(texts) == limit
    assert all(text.endswith("Please.") for text in texts)
    told = [str(event["message"]) for event in grown.events if event["event"] == "warning"]
    assert any("data.limit 40 passes over" in each for each in told)
