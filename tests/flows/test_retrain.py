"""The retrain flow with a real server: new pairs, none, a refusal, and a person who is asked."""

import os
import re
import threading
import time
from typing import Any

import pytest
from bench import Bench
from flow_runs import artifacts_of, tasks_of
from forked_stages import forked_stages
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_runs import resume_flow_run
from retraining import parameters

from flows.retrain import GateSettings, retrain
from flows.ui.slots import device_slot, slot_name
from sdpo.errors import ConfigError, UserError
from sdpo.processes.devices import LOCK_DIR, SHARE, lock_folder
from sdpo.promotion.retrain import Retrained
from sdpo.promotion.versions import current
from sdpo.system.locks import hold

pytestmark = pytest.mark.usefixtures("prefect_server")


def flown(bench: Bench, **groups: Any) -> Retrained:
    with forked_stages():
        found = retrain(**parameters(bench, **groups))
    assert isinstance(found, Retrained)
    return found


def test_a_value_that_cannot_be_is_refused_in_the_words_of_the_command_line(
    promoted: Bench,
) -> None:
    with pytest.raises(ConfigError, match=r"gate\.accuracy_tolerance: .* got 'much'"):
        flown(promoted, gate={"accuracy_tolerance": "much"})


def last_run() -> FlowRun:
    with get_client(sync_client=True) as client:
        return max(client.read_flow_runs(), key=lambda run: str(run.created))


def test_one_step_of_new_pairs_is_promoted_and_the_next_slot_makes_none(promoted: Bench) -> None:
    found = flown(promoted)
    run = last_run()
    assert found.status == "promoted"
    assert re.fullmatch(r"tiny \d{4}-\d\d-\d\d \d\d:\d\d UTC", run.name)
    assert run.state is not None
    assert run.state.is_completed()
    assert (run.state.message or "").startswith("promoted: gate: by estimates alone")
    nodes = ("step 3: align on D_3 (18 pairs)", "report", "gate", "promote")
    assert [task.name for task in tasks_of(run) if task.name in nodes] == list(nodes)
    found_there = artifacts_of(run)
    page = str(found_there["judgement-tiny"].data)
    assert {"partition-tiny", "gamma-ref-tiny", "reserve-tiny", "run-tiny"} <= found_there.keys()
    assert "| M_2, in use | M_3, new | change |" in page
    assert "accuracy against S" in page
    assert not [line for line in page.splitlines() if re.search(r"\d\.\d{5}", line)]
    assert current("tiny", runs_dir=promoted.runs).in_use.step == 3

    assert flown(promoted).status == "nothing new"
    message = "nothing new for tiny, which is at version 2"
    state = last_run().state
    assert state is not None
    assert (state.is_completed(), state.message) == (True, message)
    assert "20 new pairs" not in message
    assert len(list(promoted.runs.glob("*/run.yaml"))) == 2


def test_a_slot_that_comes_while_another_is_at_work_is_cancelled_and_says_for_whom(
    promoted: Bench,
) -> None:
    with hold(promoted.runs / ".tiny.retrain.lock", what="the lineage tiny"):
        state = retrain(**parameters(promoted), return_state=True)
    assert state.is_cancelled()
    told = f"left out: the lineage tiny is in use by process {os.getpid()} on host "
    assert (state.message or "").startswith(told)
    there = last_run().state
    assert there is not None
    assert there.is_cancelled()
    assert len(list(promoted.runs.glob("*/run.yaml"))) == 1


def test_the_first_time_it_fails_with_what_to_do(finished_copy: Bench) -> None:
    with pytest.raises(UserError, match="sdpo promote tiny"):
        flown(finished_copy)
    state = last_run().state
    assert state is not None
    assert state.is_failed()
    assert "`sdpo promote tiny` makes it the first one" in (state.message or "")


def active_slots() -> int:
    """Stages that hold this host's slot on the server."""
    with get_client(sync_client=True) as client:
        return client.read_global_concurrency_limit_by_name(slot_name()).active_slots


class Person(threading.Thread):
    """Answers the form of the run that is paused."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._answer = answer
        self.found_free = False

    def run(self) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            paused = last_run()
            if paused.state and paused.state.is_paused():
                with hold(lock_folder() / "cpu.lock", what="the device"):
                    self.found_free = active_slots() == 0
                resume_flow_run(paused.id, run_input=self._answer)
                return
            time.sleep(0.5)


def test_a_paused_run_holds_no_device_and_goes_on_with_what_the_person_says(
    promoted: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOCK_DIR, str(promoted.folder / "locks"))
    monkeypatch.setenv(SHARE, "")
    person = Person({"decision": "hold", "reason": "too wordy"})
    person.start()
    found = flown(promoted, approval={"required": True, "timeout_minutes": 3})
    person.join()
    assert person.found_free
    assert (lock_folder() / "cpu.lock").exists(), "it was held while the step trained"
    assert (found.status, found.reason) == ("rejected", "a person rejected it: too wordy")
    assert "judgement-tiny" in artifacts_of(last_run())
    assert current("tiny", runs_dir=promoted.runs).current == 1
    state = last_run().state
    assert state is not None
    assert state.is_completed()


def test_without_an_answer_the_run_completes_in_time_and_the_model_in_use_stays(
    promoted: Bench,
) -> None:
    found = flown(promoted, approval={"required": True, "timeout_minutes": 0.05})
    assert (found.status, found.reason) == (*("unanswered", "nobody answered within 0.05 minutes"),)
    assert current("tiny", runs_dir=promoted.runs).current == 1
    state = last_run().state
    assert state is not None
    assert state.is_completed()


def test_the_form_has_flat_groups_with_titles_descriptions_and_literal_defaults() -> None:
    schema = retrain.parameters.model_dump()
    assert list(schema["properties"]) == ["lineage", "data", "step", "gate", "approval"]
    for group in schema["definitions"].values():
        for name, field in group["properties"].items():
            assert field.get("title"), name
            assert field.get("description"), name
            assert "default" in field, name
            assert "anyOf" not in field, name
            assert "$ref" not in field, name
    assert GateSettings().min_pairs == 200


def test_the_slot_of_a_host_is_made_once_and_held_by_one_at_a_time() -> None:
    @flow
    def two_stages() -> list[int]:
        seen = []
        for _ in range(2):
            with device_slot(["cpu"]):
                seen.append(active_slots())
            seen.append(active_slots())
        return seen

    assert two_stages() == [1, 0, 1, 0]
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name(slot_name()).limit == 1
