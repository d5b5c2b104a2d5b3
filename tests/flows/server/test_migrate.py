"""What earlier versions left on a server is brought to where it belongs now."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from flows.server.deploy import ALIGN_FULL, deploy, schema_of

pytestmark = pytest.mark.usefixtures("prefect_server")

OLD = json.loads(
    (Path(__file__).resolve().parents[2] / "golden" / "parameters_0.1.json").read_text()
)["align"]


def as_before(scheduled: dict[str, Any]) -> None:
    """Make the server's `align` that of 0.1, with a parameter and two schedules of a person."""
    deploy("sdpo", folder=None, reset_schedules=False)
    schedules = [
        DeploymentScheduleCreate(
            schedule=CronSchedule(cron="5 4 * * *", timezone="Asia/Seoul"),
            active=True,
            parameters=scheduled,
        ),
        DeploymentScheduleCreate(
            schedule=IntervalSchedule(interval=timedelta(days=3)), active=False
        ),
    ]
    with get_client(sync_client=True) as client:
        full = client.read_deployment_by_name("sdpo-align-full/align-full")
        client.delete_deployment(full.id)
        found = client.read_deployment_by_name("sdpo-align/align")
        client.update_deployment(
            found.id,
            DeploymentUpdate(
                parameter_openapi_schema=schema_of(ALIGN_FULL),
                parameters={"name": "nightly", "training": OLD["training"]},
                tags=["sdpo", "mine"],
            ),
        )
        client.create_deployment_schedules(found.id, schedules)


def test_parameters_and_schedules_of_the_whole_recipe_are_those_of_the_deployment_that_has_it() -> (
    None
):
    as_before(OLD)
    said = deploy("sdpo", folder=Path("/srv/desk"), reset_schedules=False)
    assert any("2 schedules" in line and "align-full" in line for line in said)
    again = deploy("sdpo", folder=Path("/srv/desk"), reset_schedules=False)
    assert not any("schedules" in line for line in again)
    with get_client(sync_client=True) as client:
        short = client.read_deployment_by_name("sdpo-align/align")
        full = client.read_deployment_by_name("sdpo-align-full/align-full")
    assert (short.parameters, short.schedules) == ({}, [])
    assert "recipe" in short.parameter_openapi_schema["properties"]
    assert full.parameters == {"name": "nightly", "training": OLD["training"]}
    assert "mine" in full.tags
    nightly, seldom = sorted(full.schedules, key=lambda each: not each.active)
    assert nightly.schedule.cron == "5 4 * * *"
    assert nightly.schedule.timezone == "Asia/Seoul"
    assert nightly.parameters == OLD
    assert not seldom.active
    assert seldom.schedule.interval == timedelta(days=3)
