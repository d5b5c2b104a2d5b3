"""The Prefect flow: the same chain, its nodes as tasks, its tables as artifacts."""

import json
import logging
from typing import Any

import pytest
from bench import Bench, Outcome
from command_line import Sdpo
from flow_runs import artifacts_of, tasks_of
from foreign import fill, state_of
from forked_stages import forked_stages
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import TerminationSignal

from flows.align_full import align_full
from flows.replay import replay
from flows.ui.runpage import RunPage, task_call
from sdpo.chain.run_chain import ChainResult
from sdpo.config import RunConfig
from sdpo.config.load import make_config
from sdpo.errors import ConfigError, ForeignFolderError, Interrupted, UserError
from sdpo.events import event_of

pytestmark = pytest.mark.usefixtures("prefect_server")


def parameters(bench: Bench, **changes: Any) -> dict[str, Any]:
    """The flow's parameters, as a schedule or the UI gives them: plain values."""
    config = make_config(bench.values(changes))
    return {name: config.model_dump()[name] for name in RunConfig.model_fields}


def flow_runs() -> list[FlowRun]:
    """All flow runs, the latest first."""
    with get_client(sync_client=True) as client:
        return sorted(client.read_flow_runs(), key=lambda run: str(run.created), reverse=True)


def task_names(run: FlowRun) -> list[str]:
    tasks = tasks_of(run)
    assert all(task.state is not None and task.state.is_completed() for task in tasks)
    return [task.name for task in tasks]


@pytest.fixture(scope="module")
def flown(
    tmp_path_factory: pytest.TempPathFactory, finished_bench: Bench, finished: Outcome
) -> tuple[ChainResult, FlowRun]:
    """The finished run's recipe as a flow, under another name beside its caches."""
    assert finished.folder.is_dir()
    bench = finished_bench.copy_to(tmp_path_factory.mktemp("flown"))
    with forked_stages():
        result = align_full(**parameters(bench, name="flown_1"))
    return result, flow_runs()[0]


def test_the_flow_makes_what_the_chain_makes(
    flown: tuple[ChainResult, FlowRun], finished: Outcome
) -> None:
    result, run = flown
    assert run.state is not None
    assert run.state.is_completed()
    assert run.name == "flown_1"
    mine = Outcome(result, [])
    assert mine.record("step-2")["outputs"] == finished.record("step-2")["outputs"]
    assert result.report.is_file()


def test_every_node_is_a_task_with_its_name_and_so_is_each_phase_of_a_stage(
    flown: tuple[ChainResult, FlowRun],
) -> None:
    names = task_names(flown[1])
    nodes = [
        "prepare data",
        "tokenise",
        "reserve",
        "check",
        "partition",
        "step 1: align on D_1 (36 pairs)",
        "step 2: align on D_2 (36 pairs)",
        "report",
    ]
    assert [name for name in names if name in nodes] == nodes
    start = names.index(nodes[5])
    phases = names[start + 1 : names.index(nodes[6])]
    assert phases[0] == "step 1: load"
    assert {"step 1: train (6 steps)", "step 1: publish"} <= set(phases)


def test_its_tables_its_progress_and_its_card_are_artifacts(
    flown: tuple[ChainResult, FlowRun],
) -> None:
    result, run = flown
    found = artifacts_of(run)
    tables = {"partition-flown-1", "gamma-ref-flown-1", "reserve-flown-1"}
    assert found.keys() == {
        *tables,
        "run-flown-1",
        "progress-flown-1-step-1",
        "progress-flown-1-step-2",
    }
    assert {found[key].type for key in tables} == {"table"}
    assert "questions 36" in str(found["partition-flown-1"].data)
    gamma = json.loads(str(found["gamma-ref-flown-1"].data))
    assert {(row["step"], row["model"]) for row in gamma} == {(1, "S"), (2, "M_1")}
    assert {row["probe"] for row in gamma} >= {"D_1", "D_2", "reserve:requests"}
    shown = [(row["model"], row["probe"], row["pairs"]) for row in gamma]
    assert len(set(shown)) == len(shown)
    reserve = json.loads(str(found["reserve-flown-1"].data))
    assert [row["Model"] for row in reserve] == ["S", "M_1", "M_2"]
    assert {found[f"progress-flown-1-step-{step}"].data for step in (1, 2)} == {100.0}
    card = str(found["run-flown-1"].data)
    assert str(result.report) in card
    for step in (1, 2):
        record = Outcome(result, []).record(f"step-{step}")
        assert f"| M_{step} | dpo |" in card
        assert record["outputs"]["model"][:12] in card


def test_a_hundred_thousand_lines_do_not_reach_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    updates: list[str] = []
    monkeypatch.setattr(
        "flows.ui.runpage.create_progress_artifact", lambda *a, **k: updates.append("")
    )
    monkeypatch.setattr(
        "flows.ui.runpage.update_progress_artifact", lambda *a, **k: updates.append("")
    )

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    # A logger of its own: other tests of this process may have set those of Prefect.
    logger = logging.getLogger("noisy")
    monkeypatch.setattr(logger, "handlers", [Lines()])
    monkeypatch.setattr("flows.ui.runpage.get_run_logger", lambda: logger)
    page = RunPage("noisy")
    page.listen(event_of({"event": "stage", "stage": "s", "status": "started", "log": "s.log"}))
    for number in range(100_000):
        message = f"a bar\r{number} of it\rand a line"
        page.listen(event_of({"event": "warning", "stage": "s", "message": message}))
        done = {"phase": "p", "done": number, "total": 100_000, "unit": "rows"}
        page.listen(event_of({"event": "progress", "stage": "s", **done}))
    said = [line for line in shown if line.startswith("a bar")]
    assert 100 < len(said) < 1000
    assert not any("\r" in line or "\n" in line for line in shown)
    assert any("there is more" in line for line in shown)
    assert 1 <= len(updates) < 30


@pytest.mark.parametrize(
    "error", [TerminationSignal(15), KeyboardInterrupt(), Interrupted("asked")]
)
def test_tasks_that_end_with_their_run_are_cancelled_and_did_not_crash(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def inner() -> None:
        raise error

    @flow
    def stopped() -> str:
        with pytest.raises(type(error)) as caught:
            task_call("a node", lambda: task_call("a phase", inner))
        return "as asked" if caught.value is error else "otherwise"

    assert stopped() == "as asked"
    states = {task.name: task.state for task in tasks_of(flow_runs()[0])}
    assert states.keys() == {"a node", "a phase"}
    assert all(state is not None and state.is_cancelled() for state in states.values())
    assert not any("Crash" in record.getMessage() for record in caplog.records)


def test_a_value_that_cannot_be_fails_before_anything_runs(bench: Bench, sdpo: Sdpo) -> None:
    message = "training.beta: Input should be greater than 0, got -1"
    with pytest.raises(ConfigError, match=message):
        align_full(**parameters(bench) | {"training": {"beta": -1}})
    assert message in sdpo("run", bench.write({"training": {"beta": -1}})).told
    assert not bench.runs.exists()


def test_flows_refuse_a_users_folder_as_the_command_line_does(bench: Bench, sdpo: Sdpo) -> None:
    state = fill(bench.runs / "tiny") | fill(bench.folder / "mine")
    elsewhere = {"name": "new", "store": {"cache_dir": str(bench.folder / "mine")}}
    for changes in ({}, elsewhere):
        with pytest.raises(ForeignFolderError, match="nothing in it is touched") as refused:
            align_full(**parameters(bench, **changes))
        assert str(refused.value) in sdpo("run", bench.write(changes)).told
    with pytest.raises(UserError, match="no run at"):
        replay(run="tiny", store={"runs_dir": str(bench.folder / "mine")})
    assert state_of(state) == state
    assert not (bench.runs / "new").exists()


def test_a_table_that_somebody_deleted_is_made_again() -> None:
    found: list[str] = []

    @flow
    def shown() -> None:
        page = RunPage("gone")
        for number in range(3):
            page._table("rows", [{"number": number}], "numbers")
            with get_client(sync_client=True) as client:
                (artifact,) = artifacts_of(flow_runs()[0]).values()
                found.append(str(artifact.data))
                if number == 1:
                    client.delete_artifact(artifact.id)

    shown()
    assert found == [json.dumps([{"number": number}]) for number in range(3)]


@pytest.mark.parametrize(
    "partition",
    [
        {"strategy": "random", "fractions": [0.5, 0.6]},  # refused by the recipe
        {"groups": [["questions", "request"]]},  # refused by the chain
    ],
)
def test_a_mistake_has_the_same_message_as_on_the_command_line(
    bench: Bench, sdpo: Sdpo, partition: dict[str, Any]
) -> None:
    with forked_stages(), pytest.raises(ValueError, match=r"partition\.") as caught:
        align_full(**parameters(bench) | {"partition": partition})
    state = flow_runs()[0].state
    assert state is not None
    assert state.is_failed()
    assert str(caught.value) in sdpo("run", bench.write({"partition": partition})).told
    assert not (bench.runs / "tiny").exists()


def test_sdpo_run_with_prefect_is_the_same_run(
    finished_copy: Bench, sdpo: Sdpo, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(flow_runs())
    called = sdpo("run", finished_copy.write(), "--prefect")
    assert called.code == 0, called.told
    assert "run tiny is complete: nothing to do" in called.out
    assert "Change from S" in called.told
    assert "run tiny was complete already: nothing was trained" in caplog.text, "the run's page"
    assert len(flow_runs()) == before + 1


def test_a_mistake_with_prefect_exits_with_2(bench: Bench, sdpo: Sdpo) -> None:
    recipe = bench.write({"partition": {"groups": [["questions", "request"]]}})
    called = sdpo("run", recipe, "--prefect")
    assert called.code == 2
    assert "error: partition.groups: source" in called.told
    assert "Traceback" not in called.told
    assert not (bench.runs / "tiny").exists()
