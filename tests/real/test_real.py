"""Two steps over real preference data with a tiny real model: what the recipe beside this promises.

The data lies in the folder ``shared`` beside the project; without it these tests are skipped.
"""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bench import Outcome
from forked_stages import forked_stages
from histories import replayed

from sdpo.chain.run_chain import run_chain
from sdpo.config.load import load_recipe
from sdpo.events import Event
from sdpo.hooks import Host
from sdpo.identity.model_digest import model_digest

PROJECT = Path(__file__).resolve().parents[2]
SHARED = PROJECT / ".." / "shared"
RECIPE = Path(__file__).with_name("orca_ultrafeedback.yaml")
BASE = SHARED / "models" / "base-2m"

pytestmark = pytest.mark.skipif(
    not BASE.is_dir(), reason="needs the folder `shared` with models and data beside the project"
)


def run(folder: Path, *overrides: str) -> Outcome:
    """Run the recipe; its paths are relative to the project's root."""
    config = load_recipe(RECIPE, overrides=[f"store.runs_dir={folder / 'runs'}", *overrides])
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        return Outcome(run_chain(config, host=Host(listen=events.append)), events)


def assert_steps_are_chained(done: Outcome) -> None:
    first, second = done.record("step-1"), done.record("step-2")
    assert first["inputs"]["reference"] == first["inputs"]["target"] == model_digest(BASE)
    assert second["inputs"]["reference"] == first["outputs"]["model"]
    assert second["inputs"]["target"] == first["outputs"]["model"]
    assert model_digest(done.run.model(1)) == first["outputs"]["model"]
    assert second["outputs"]["model"] != first["outputs"]["model"] != model_digest(BASE)
    for record in (first, second):
        assert record["gate"]["loss"] == pytest.approx(math.log(2), abs=1e-3)
        assert record["gate"]["max_abs_difference_nats"] <= 1e-2
    pairs = [step["pairs"] for step in done.json("plan.json")["steps"]]
    assert second["scored_rows"] == {"computed": 0, "cached": pairs[1]}
    assert [record["pairs"] for record in (first, second)] == pairs


def test_a_few_pairs_of_the_real_data_run_to_the_end(tmp_path: Path) -> None:
    few = ("data.limit=16", "data.max_length=192", "training.batch_size=4", "launch.threads=1")
    with forked_stages():
        done = run(tmp_path, *few, "probe.completion_tokens=4", "probe.bootstrap_resamples=100")
    assert_steps_are_chained(done)
    assert done.result.report.is_file()
    sources = [step["sources"] for step in done.json("plan.json")["steps"]]
    assert [list(counts) for counts in sources] == [["orca"], ["ultrafeedback"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both strategies share one cache."""
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def natural(folder: Path) -> Outcome:
    return run(folder)


@pytest.fixture(scope="module")
def stratified(folder: Path) -> Outcome:
    return run(folder, "name=stratified", "partition.strategy=stratified")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_natural_steps_over_the_real_data(natural: Outcome) -> None:
    assert_steps_are_chained(natural)
    first, second = natural.json("plan.json")["steps"]
    assert (first["sources"].keys(), second["sources"].keys()) == ({"orca"}, {"ultrafeedback"})


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_stratified_steps_over_the_real_data(natural: Outcome, stratified: Outcome) -> None:
    assert_steps_are_chained(stratified)
    first, second = stratified.json("plan.json")["steps"]
    for source, count in first["sources"].items():
        total = count + second["sources"][source]
        assert count == pytest.approx(0.1667 * total, abs=1), source
    reserves = [
        sorted(
            row["pair_id"] for row in pq.read_table(done.run.plan).to_pylist() if not row["step"]
        )
        for done in (natural, stratified)
    ]
    assert reserves[0] == reserves[1], "the reserve does not depend on the strategy"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_each_step_moves_the_model_towards_its_partition(natural: Outcome) -> None:
    entries = {(e["model"], e["probe"]): e for e in natural.json("step-2/gamma.json")}
    for step in (1, 2):
        moved = entries[f"M_{step}", f"D_{step}"]["vs_previous"]
        assert moved["low"] > 0
        assert moved["share_above"] > 0.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_real_run_again_does_nothing(natural: Outcome, folder: Path) -> None:
    assert run(folder).result.executed == ()
    assert natural.result.steps == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_step_of_the_real_run_made_again_is_bitwise_identical(natural: Outcome) -> None:
    result, again = replayed(natural.run, step=1)
    assert result.comparison.verdict == "bitwise identical"
    assert again.result.executed == ("step-1", "report"), "M_1 is the same, so step 2 is shared"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_another_beta_on_the_real_run_scores_nothing(natural: Outcome) -> None:
    _, again = replayed(natural.run, "training.beta=0.2", step=1, only=True)
    before, after = natural.record("step-1"), again.record("step-1")
    assert before["scored_rows"]["computed"] == before["pairs"]
    assert after["scored_rows"] == {"computed": 0, "cached": before["pairs"]}
