"""The flows with a short form about finished runs: extend, promote, rollback, verify, report."""

from typing import Any

import pytest
from bench import Bench
from flow_runs import artifacts_of
from forked_stages import forked_stages
from histories import flip, write_new_pairs
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State

from flows.extend import extend
from flows.promote import promote
from flows.report import report
from flows.rollback import rollback
from flows.verify import verify
from sdpo.promotion.versions import current
from sdpo.store.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("prefect_server")


def last_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return max(client.read_flow_runs(), key=lambda run: str(run.created))


def ended(flow: Any, bench: Bench, **given: Any) -> State[Any]:
    """The state in which a call of a flow ends."""
    state: State[Any] = flow(**given, runs_dir=str(bench.runs), return_state=True)
    return state


def test_a_model_is_put_in_use_and_the_version_before_comes_back(finished_copy: Bench) -> None:
    first = ended(promote, finished_copy, run="tiny/step-1", name="chat", reason="the first")
    assert first.is_completed()
    assert (first.message or "").startswith("chat is at version 1: M_1 of run tiny")
    assert last_run().name == "promote tiny/step-1"
    assert ended(promote, finished_copy, run="tiny", name="chat").is_completed()
    assert current("chat", runs_dir=finished_copy.runs).in_use.step == 2
    back = ended(rollback, finished_copy, name="chat", reason="too wordy")
    assert (back.message or "").startswith("chat is at version 1: M_1 of run tiny")
    assert current("chat", runs_dir=finished_copy.runs).moves[-1].why == "too wordy"
    table = str(artifacts_of(last_run())["versions-chat"].data)
    assert "the first" in table
    again = ended(rollback, finished_copy, name="chat", version=2)
    assert (again.message or "").startswith("chat is at version 2: M_2")


def test_a_whole_run_is_said_to_be_whole_and_a_fault_fails_with_its_name(
    finished_copy: Bench,
) -> None:
    whole = ended(verify, finished_copy, run="tiny")
    assert whole.is_completed()
    assert "run tiny is whole" in (whole.message or "")
    flip(RunFolder(finished_copy.runs / "tiny").model(2) / "model.safetensors", at=-100)
    broken = ended(verify, finished_copy, run="tiny")
    assert broken.is_failed()
    assert "model.safetensors" in (broken.message or "")
    assert "what to do" in str(artifacts_of(last_run())["faults-tiny"].data)


def test_a_report_is_written_anew_with_its_card(finished_copy: Bench) -> None:
    path = RunFolder(finished_copy.runs / "tiny").report
    path.unlink()
    state = ended(report, finished_copy, run="tiny")
    assert state.is_completed()
    assert path.is_file()
    assert "run-tiny" in artifacts_of(last_run())


def test_a_run_grows_by_what_is_new_and_by_nothing_else(finished_copy: Bench) -> None:
    news = str(write_new_pairs(finished_copy.folder / "new.jsonl", *range(20)))
    few = ended(extend, finished_copy, run="tiny", sources=[news], min_new_pairs=500)
    assert few.is_completed()
    assert (few.message or "").endswith("no run is made")
    given = {"sources": [news], "overrides": ["training.max_steps=1"], "name": "grown"}
    with forked_stages():
        grown = ended(extend, finished_copy, run="tiny", **given)
    assert grown.message == "20 new pairs made run grown"
    assert RunFolder(finished_copy.runs / "grown").complete_steps() == [1, 2, 3]
    assert "run-grown" in artifacts_of(last_run())


@pytest.mark.parametrize(
    ("flow", "given", "message"),
    [
        (promote, {}, "which run's model"),
        (promote, {"run": "tinny"}, "tiny"),
        (rollback, {}, "which model is to go back"),
        (rollback, {"name": "nobody"}, "nothing was promoted as nobody yet"),
        (verify, {}, "which run is to be checked"),
        (report, {"run": " "}, "which run's report"),
        (extend, {}, "which run is to grow"),
        (extend, {"run": "tiny"}, "name a source"),
    ],
    ids=lambda given: getattr(given, "name", str(given)),
)
def test_a_mistake_fails_in_words_and_changes_nothing(
    finished_copy: Bench, flow: Any, given: dict[str, Any], message: str
) -> None:
    state = ended(flow, finished_copy, **given)
    assert state.is_failed()
    assert message in (state.message or "")
    assert not (finished_copy.runs / "registry.json").exists()
