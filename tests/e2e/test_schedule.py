"""Retraining on a schedule, with a real scheduler and worker."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bench import Bench, Values
from desk import FINAL, Desk, FlowRun, wait_until
from retraining import parameters

from sdpo.promotion.versions import current

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

_FIRST_S = 3
"""The first slot comes after so long; an interval goes on from it."""
LEASE_S = 300
"""For so long Prefect lets a run have a deployment's slot before it has to be renewed."""


@pytest.fixture
def firing(desk: Desk) -> Iterator[Any]:
    """``firing(parameters, every_s=...)``: the retrain deployment fires so often, until the end or
    until it is asked to fire otherwise: a schedule outlives a start of the server."""
    made: list[tuple[str, str]] = []

    def stop() -> None:
        while made:
            deployment, schedule = made.pop()
            desk.api(f"/deployments/{deployment}/schedules/{schedule}", method="DELETE")

    def fire(given: Values, *, every_s: int) -> None:
        stop()
        deployment = desk.api("/deployments/name/sdpo-retrain/retrain")["id"]
        schedule = {
            "active": True,
            "parameters": given,
            "schedule": {
                "interval": every_s,
                "anchor_date": (datetime.now(UTC) + timedelta(seconds=_FIRST_S)).isoformat(),
                "timezone": "Europe/Berlin",
            },
        }
        found = desk.api(f"/deployments/{deployment}/schedules", [schedule])
        made.append((deployment, found[0]["id"]))

    yield fire
    stop()


def slots(desk: Desk) -> list[FlowRun]:
    """Runs that the schedule made and that have come to their time."""
    body = {
        "flows": {"name": {"any_": ["sdpo-retrain"]}},
        "flow_runs": {"expected_start_time": {"before_": datetime.now(UTC).isoformat()}},
        "sort": "EXPECTED_START_TIME_DESC",
    }
    found = desk.api("/flow_runs/filter", body)
    return [FlowRun(desk, run["id"]) for run in found if run["auto_scheduled"]]


def messages(desk: Desk) -> list[str]:
    """What the completed ones said."""
    ended = [run.read()["state"] for run in slots(desk)]
    return [state["message"] for state in ended if state["type"] == "COMPLETED"]


def test_a_slot_makes_one_step_the_next_none_and_missed_ones_at_most_one(
    desk: Desk, promoted: Bench, firing: Any
) -> None:
    given = parameters(promoted)
    with desk.without_worker():
        firing(given, every_s=20)
        wait_until(lambda: len(slots(desk)) >= 2, 240, "missed slots", every_s=1)
    wait_until(lambda: messages(desk), 400, "a step", every_s=1)
    firing(given, every_s=30)
    wait_until(
        lambda: any(message.startswith("nothing new") for message in messages(desk)),
        240,
        "a slot without new pairs",
        every_s=1,
    )
    said = messages(desk)
    assert len([message for message in said if message.startswith("promoted")]) == 1
    states = {run.state for run in slots(desk)}
    assert "CANCELLED" in states
    assert "FAILED" not in states
    assert current("tiny", runs_dir=promoted.runs).in_use.step == 3
    assert len(list(promoted.runs.glob("*/run.yaml"))) == 2


@pytest.mark.slow
def test_an_approval_is_heard_longer_after_than_any_lease_of_prefect_lasts(
    desk: Desk, promoted: Bench
) -> None:
    asked = parameters(promoted, approval={"required": True})
    run = desk.submit("sdpo-retrain/retrain", asked)
    assert run.wait(states=("PAUSED", *FINAL)) == "PAUSED"
    time.sleep(LEASE_S + 30)
    assert run.state == "PAUSED"
    desk.api(
        f"/flow_runs/{run.id}/resume", {"run_input": {"decision": "promote", "reason": "at last"}}
    )
    assert run.wait() == "COMPLETED"
    assert current("tiny", runs_dir=promoted.runs).in_use.why.startswith(
        "approved by a person: at last"
    )
