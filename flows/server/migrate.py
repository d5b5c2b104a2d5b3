"""Bring what earlier versions left on a server to where it belongs now."""

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse


def has_whole_recipe(align: DeploymentResponse) -> bool:
    """Return whether the deployment `align` is one of before, whose form was the whole recipe."""
    return "recipe" not in (align.parameter_openapi_schema or {}).get("properties", {})


def move_what_was_set(
    client: SyncPrefectClient, before: DeploymentResponse, now: DeploymentResponse
) -> list[str]:
    """Move what a person set of ``before`` to ``now``, which takes the same parameters.

    It moves one schedule after the other, so that a call that was interrupted can be done again. It
    returns what to say of it.
    """
    if not before.parameters and not before.schedules:
        return []
    own = set(now.tags)
    client.update_deployment(
        now.id,
        DeploymentUpdate(
            parameters=before.parameters,
            paused=before.paused,
            tags=[*now.tags, *(tag for tag in before.tags if tag not in own)],
            job_variables=before.job_variables,
        ),
    )
    there = [(each.schedule, each.parameters) for each in now.schedules]
    for each in before.schedules:
        if (each.schedule, each.parameters) not in there:
            copy = DeploymentScheduleCreate(
                schedule=each.schedule, active=each.active, parameters=each.parameters
            )
            client.create_deployment_schedules(now.id, [copy])
        client.delete_deployment_schedule(before.id, each.id)
    client.update_deployment(before.id, DeploymentUpdate(parameters={}))
    return [
        f"{before.name}: its parameters and {len(before.schedules)} schedules, which are of the "
        f"whole recipe, are those of {now.name} now"
    ]
