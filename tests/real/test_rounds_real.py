"""A round of a small real model on real requests, after a step on real pairs: what is looked at."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bench import Outcome
from forked_stages import forked_stages

from sdpo.chain.run_chain import run_chain
from sdpo.config.load import load_recipe
from sdpo.events import Event
from sdpo.history.verify import verify_run
from sdpo.hooks import Host
from sdpo.judges.rules import on_topic
from sdpo.report.held_out import rounds_seen
from sdpo.report.rounds import RoundOutputs

PROJECT = Path(__file__).resolve().parents[2]
SHARED = PROJECT / ".." / "shared"
RECIPE = Path(__file__).with_name("stories_round.yaml")

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SHARED / "models" / "base-2m").is_dir(),
        reason="needs the folder `shared` with models and data beside the project",
    ),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("real")
    config = load_recipe(RECIPE, overrides=[f"store.runs_dir={folder / 'runs'}"])
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch, forked_stages():
        patch.chdir(PROJECT)
        return Outcome(run_chain(config, host=Host(listen=events.append)), events)


def test_real_requests_are_answered_judged_and_trained_on(made: Outcome) -> None:
    samples = pq.read_table(made.run.step(2) / "samples.parquet").to_pylist()
    assert len(samples) == 4 * 96
    for row in samples:
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["prompt"]]
        assert row["score"] == pytest.approx(on_topic(turns, row["text"]))
    outputs = RoundOutputs.model_validate(made.record("data-2")["outputs"])
    assert outputs.pairs > 48
    assert outputs.distinct_2 > 0.1, "a real model repeats itself less than that"
    assert made.record("step-2")["pairs"] == outputs.pairs
    assert verify_run(made.run).faults == []


def test_the_round_is_seen_on_held_out_prompts(made: Outcome) -> None:
    (seen,) = rounds_seen(made.run)
    assert len(seen.before) == len(seen.after) > 15
    assert seen.gain_bounds[1] is not None
    assert seen.gain_bounds[1] > 0, "the judge does not like M_2 less than M_1"
