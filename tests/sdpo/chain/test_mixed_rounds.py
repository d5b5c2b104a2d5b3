"""A step may have pairs of the data and pairs that the model before it made, by shares."""

import pyarrow.parquet as pq
import pytest
from bench import Bench, DemoFiles, Outcome, Values
from histories import replayed
from round_runs import recipe, rows

from partitions import PartitionError
from sdpo.history.verify import verify_run

SHARE = 0.4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    return Bench(tmp_path_factory.mktemp("mixed"), tiny_recipe)


@pytest.fixture(scope="module")
def mixed(place: Bench, demo_files: DemoFiles) -> Outcome:
    """Two steps of the data, of which a round joins the second."""
    changes = recipe(
        demo_files, prompts_of="requests", share=SHARE, per_round=12, judge={"rule": "length"}
    )
    partition = {"strategy": "random", "fractions": [0.9, 0.1]}
    return place.run({**changes, "name": "mixed", "partition": partition})


def test_a_round_makes_its_share_of_a_step_of_the_data(mixed: Outcome) -> None:
    steps = mixed.json("plan.json")["steps"]
    assert [step.get("generated") for step in steps] == [None, {"source": "round", "round": 1}]
    given, made = steps[1]["pairs"], len(rows(mixed, 2, "pairs"))
    assert given > 0
    assert made == round(given * SHARE / (1 - SHARE)) < 12
    assert mixed.record("step-2")["pairs"] == given + made
    kept = {row["pair_id"] for row in rows(mixed, 2, "pairs")}
    trained = {row["pair_id"] for row in rows(mixed, 2, "reference")}
    plan = pq.read_table(mixed.run.plan).to_pylist()
    assert trained == kept | {row["pair_id"] for row in plan if row["step"] == 2}
    uses = {row["use"] for row in rows(mixed, 2, "samples")}
    assert {"chosen", "rejected", "more than its share of the step"} <= uses
    left = {row["pair_id"] for row in rows(mixed, 2, "samples") if row["use"].startswith("more")}
    assert left == {""}


def test_a_mixed_step_is_whole_and_replays_bitwise(mixed: Outcome) -> None:
    assert verify_run(mixed.run).faults == []
    result, _ = replayed(mixed.run, step=2, only=True, name="mixed-again")
    assert result.comparison.verdict == "bitwise identical"


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        ({"rounds": 3, "per_round": 2}, "3 rounds that join steps of the data .* there are 2"),
        ({"rounds": 2, "per_round": 2, "judge": {"implicit": True}}, "joins step 1, .* S itself"),
    ],
)
def test_rounds_that_no_step_of_the_data_can_have_are_refused(
    place: Bench, demo_files: DemoFiles, generate: Values, message: str
) -> None:
    judge = {"judge": {"rule": "length"}}
    changes = recipe(demo_files, prompts_of="requests", share=SHARE, **{**judge, **generate})
    partition = {"strategy": "random", "fractions": [0.9, 0.1]}
    with pytest.raises(PartitionError, match=message):
        place.run({**changes, "name": "refused", "partition": partition})
