"""The flows that compare arms and sweep settings: tasks, artifacts, how they end and go on."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Values
from flow_runs import artifacts_of, tasks_of
from forked_arms import forked_arms
from forked_stages import forked_stages
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State

from flows.compare import compare
from flows.sweep import sweep
from sdpo.errors import Interrupted

pytestmark = pytest.mark.usefixtures("prefect_server")


def last_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return max(client.read_flow_runs(), key=lambda run: str(run.created))


def ended(flow: Any, **given: Any) -> State[Any]:
    """The state in which a call of a flow ends."""
    with forked_arms():
        state: State[Any] = flow(**given, return_state=True)
    return state


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Values) -> Bench:
    """Where the studies of this module are: steps of one optimizer step."""
    recipe = tiny_recipe | {
        "data": tiny_recipe["data"] | {"reserve": {"pairs": 12}},
        "training": tiny_recipe["training"] | {"max_steps": 2},
        "probe": tiny_recipe["probe"] | {"max_pairs": 8, "completions": 0},
    }
    return Bench(tmp_path_factory.mktemp("studies"), recipe)


def interrupt_once_there_is(path: Path) -> None:
    """Send this process what Ctrl-C does, as soon as there is such a file."""

    def wait() -> None:
        while not path.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def test_arms_that_an_interruption_ends_are_cancelled_and_the_same_form_goes_on(
    place: Bench,
) -> None:
    given = {"recipe": place.write(), "arms": ["sdpo", "dpo"], "name": "stopped"}
    folder = place.runs / "stopped"
    interrupt_once_there_is(folder / "dpo" / "step-1" / "metrics.jsonl")
    with pytest.raises((KeyboardInterrupt, Interrupted)), forked_stages():
        compare(**given)
    states = {task.name: task.state for task in tasks_of(last_run()) if task.state}
    assert states["arm sdpo"].is_completed()
    assert states["arm dpo"].is_cancelled()
    assert not (folder / "comparison.html").exists()
    made = (folder / "sdpo" / "step-2" / "record.json").read_bytes()
    assert ended(compare, **given).is_completed()
    assert (folder / "sdpo" / "step-2" / "record.json").read_bytes() == made
    again = [task.name for task in tasks_of(last_run())]
    assert not [name for name in again if name.startswith("step 2")]
    assert (folder / "comparison.html").is_file()


def test_arms_are_task_runs_one_that_fails_is_named_and_a_retry_goes_on(place: Bench) -> None:
    given = {"recipe": place.write(), "arms": ["sdpo", "dpo"]}
    failed = ended(compare, **given, own=["lost:partition.groups=[[questions],[nobody]]"])
    assert failed.is_failed()
    assert "lost failed: " in (failed.message or "")
    run = last_run()
    assert run.name.startswith("compare ")
    tasks = [task.name for task in tasks_of(run)]
    for title in ("arm sdpo", "arm dpo", "arm lost", "step 2: align on D_2 (28 pairs)"):
        assert title in tasks, tasks
    artifacts = artifacts_of(run)
    card = str(artifacts["study-tiny-compare"].data)
    assert "# Study tiny-compare" in card
    assert "data:image/svg+xml;base64," in card
    assert "Each was trained with one seed" in card
    assert "dpo" in str(artifacts["study-arms-tiny-compare"].data)
    assert {"partition-tiny-compare-sdpo", "partition-tiny-compare-dpo"} <= artifacts.keys()
    whole = ended(compare, **given)
    assert whole.is_completed()
    assert "sdpo" in (whole.message or "")
    assert not [task for task in tasks_of(last_run()) if task.name.startswith("step")]


def test_arms_that_run_side_by_side_are_task_runs_too(place: Bench) -> None:
    failed = ended(
        compare,
        recipe=place.write(),
        arms=["sdpo", "dpo"],
        own=["lost:partition.groups=[[questions],[nobody]]"],
        name="beside",
        side_by_side=3,
    )
    assert failed.is_failed()
    assert "lost failed: " in (failed.message or "")
    run = last_run()
    tasks = sorted(task.name for task in tasks_of(run) if task.name.startswith("arm "))
    assert tasks == ["arm dpo", "arm lost", "arm sdpo"]
    assert "# Study beside" in str(artifacts_of(run)["study-beside"].data)


def test_a_sweep_says_in_its_state_what_is_best(place: Bench) -> None:
    done = ended(sweep, recipe=place.write(), over=["steps.1.beta=0.05,0.4"])
    assert done.is_completed()
    assert (done.message or "").startswith("Best by selection: steps.1.beta=")
    artifacts = artifacts_of(last_run())
    assert "steps.1.beta=0.4" in str(artifacts["study-trials-tiny-sweep"].data)
    assert "# Study tiny-sweep" in str(artifacts["study-tiny-sweep"].data)


@pytest.mark.parametrize(
    ("flow", "given", "message"),
    [
        (compare, {}, "which recipe is to be compared"),
        (compare, {"recipe": "{recipe}", "arms": ["sdpo", "dop"]}, "neither an arm nor a run"),
        (compare, {"recipe": "{recipe}", "arms": []}, "a comparison needs two arms"),
        (compare, {"recipe": "{recipe}", "seeds": 0}, "--seeds 0"),
        (compare, {"recipe": "{recipe}", "keep": "some"}, "keep is `some`"),
        (sweep, {}, "of which recipe are settings to be swept"),
        (sweep, {"recipe": "{recipe}"}, "which settings are to be swept"),
        (sweep, {"recipe": "{recipe}", "over": ["training.beta=1,2"], "keep": "all"}, "keep is"),
        (sweep, {"recipe": "{recipe}", "over": ["training.beta=1..2"]}, "a grid has no ranges"),
        (compare, {"recipe": "{recipe}", "side_by_side": 0}, "--side-by-side 0"),
        (sweep, {"recipe": "{recipe}", "over": ["training.beta=1,2"], "prune": True}, "--prune"),
    ],
)
def test_a_mistake_fails_in_words_and_makes_nothing(
    bench: Bench, flow: Any, given: dict[str, Any], message: str
) -> None:
    recipe = bench.write()
    state = ended(flow, **{k: recipe if v == "{recipe}" else v for k, v in given.items()})
    assert state.is_failed()
    assert message in (state.message or "")
    assert not bench.runs.exists()
