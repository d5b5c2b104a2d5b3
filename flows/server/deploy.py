"""Make the deployments or bring them up to date: ``python -m flows.server.deploy``.

What a person set on the server stays: schedules, whether they are active, the parameters of slots
and deployments, tags, limits. Prefect's own ``deploy`` replaces all of that by what a file says,
each time it is called.
"""

import argparse
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

from flows.server.migrate import has_whole_recipe, move_what_was_set
from flows.ui.folder import REPORTS
from flows.ui.folder import VARIABLE as FOLDER

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry is a flow as it can be submitted and scheduled."""

    module: str
    """The flow's module has this name, and so has its function there."""
    description: str
    schedules: tuple[DeploymentScheduleCreate, ...] = field(default=())
    """A new deployment begins with these."""
    suffix: str = ""
    """The deployment's name ends in this."""

    @property
    def entrypoint(self) -> str:
        """Return the name that a worker imports the flow by; it needs no checkout."""
        return f"flows.{self.module}.{self.module}"

    @property
    def name(self) -> str:
        """Return the deployment's name."""
        return self.module.replace("_", "-") + self.suffix

    @property
    def flow(self) -> Flow[..., object]:
        """Return the flow itself, whose module is imported now."""
        flow: Flow[..., object] = getattr(import_module(f"flows.{self.module}"), self.module)
        return flow


TAGS = ["sdpo"]
ALIGN = Entry(
    "align", "A run by its recipe, a preset or a file, from data to the last step's model."
)
ALIGN_FULL = Entry("align_full", "A run whose form is the whole recipe: every setting there is.")
ENTRIES = (
    ALIGN,
    ALIGN_FULL,
    Entry(
        "retrain",
        "The lineage's next step, where enough new pairs have come in.",
        # Inactive until its parameters are set: which run, which sources.
        (
            DeploymentScheduleCreate(
                schedule=CronSchedule(cron="0 3 * * 1-5", timezone="Europe/Berlin"), active=False
            ),
        ),
    ),
    Entry("compare", "A recipe trained in several ways, and which is better, with intervals."),
    Entry("sweep", "A recipe trained with other settings, the best chosen and reported."),
    Entry("replay", "A step of a finished run made again, as it was or with a setting changed."),
    Entry("extend", "A finished run grows by a step over what is new in the data."),
    Entry("promote", "A finished run's model is put in use under a name."),
    Entry("rollback", "An earlier version of a model is put back in use."),
    Entry("verify", "A run is checked against its records: every file and digest."),
    Entry("report", "A run's report is written anew."),
)
"""These flows are deployed, without a concurrency limit: it would end a run that pauses for an
approval, or outlives a restart of the server. That never two of a lineage run at once, and that
missed slots do not pile up, is ensured by the flow."""


def deploy(
    pool: str,
    *,
    folder: Path | None,
    reports: Path | None = None,
    suffix: str = "",
    reset_schedules: bool,
) -> list[str]:
    """Bring the server's pool and deployments up to date; return lines that say what was done.

    Args:
        pool: name of the work pool; one for processes is made where there is none.
        folder: where relative paths of flows start; none where that is the worker's matter.
        reports: the folder of runs whose reports the server serves; none where it does not, or
            where the worker's own environment says so.
        suffix: what the names of the deployments end in, where those of several pools are on one
            server; a deployment belongs to one pool.
        reset_schedules: put back the schedules and parameters that a new deployment begins with.
    """
    said = []
    places = {FOLDER: folder, REPORTS: reports}
    told = {name: str(place) for name, place in places.items() if place is not None}
    entries = [replace(entry, suffix=suffix) for entry in ENTRIES]
    with get_client(sync_client=True) as client:
        _make_pool(client, pool)
        for entry in entries:
            existing = _existing(client, entry)
            if existing is None:
                _create(client, entry, pool, told)
                continue
            if entry == ALIGN and has_whole_recipe(existing):
                said += move_what_was_set(client, existing, _whole(client, pool, told))
            _update(client, entry, existing, told)
            if reset_schedules:
                said += _reset(client, entry, existing)
    return [f"deployed: {', '.join(entry.name for entry in entries)}", *said]


def _whole(client: SyncPrefectClient, pool: str, told: dict[str, str]) -> DeploymentResponse:
    """Return the deployment whose form is the whole recipe, made where it is not there yet."""
    if (found := _existing(client, ALIGN_FULL)) is None:
        _create(client, ALIGN_FULL, pool, told)
        found = _existing(client, ALIGN_FULL)
        assert found
    return found


def _make_pool(client: SyncPrefectClient, pool: str) -> None:
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(
            WorkPoolCreate(name=pool, type=ProcessWorker.type, base_job_template=template)
        )


def _existing(client: SyncPrefectClient, entry: Entry) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(f"{entry.flow.name}/{entry.name}")
    except ObjectNotFound:
        return None


def _create(client: SyncPrefectClient, entry: Entry, pool: str, told: dict[str, str]) -> None:
    client.create_deployment(
        client.create_flow(entry.flow),
        entry.name,
        description=entry.description,
        entrypoint=entry.entrypoint,
        parameter_openapi_schema=schema_of(entry),
        schedules=list(entry.schedules),
        work_pool_name=pool,
        tags=TAGS,
        job_variables={"env": told} if told else {},
        enforce_parameter_schema=True,
    )


def _update(
    client: SyncPrefectClient,
    entry: Entry,
    existing: DeploymentResponse,
    told: dict[str, str],
) -> None:
    """Update what belongs to the code, and nothing that a person sets."""
    changed = DeploymentUpdate(
        description=entry.description,
        entrypoint=entry.entrypoint,
        path=None,
        pull_steps=None,
        parameter_openapi_schema=schema_of(entry),
    )
    if told:
        variables = dict(existing.job_variables or {})
        variables["env"] = {**variables.get("env", {}), **told}
        changed = changed.model_copy(update={"job_variables": variables})
    client.update_deployment(existing.id, changed)


def schema_of(entry: Entry) -> dict[str, Any]:
    """Return the schema of the form, by which the server checks parameters too.

    A deployment's own parameters may be incomplete, so Prefect checks them by a schema from which
    it takes out whatever is called `required`. That takes out the setting `approval.required` too,
    which would then be refused as unknown. So a group with such a setting lets unknown ones pass
    here; the flow itself refuses them.
    """
    schema = parameter_schema(entry.flow).model_dump_for_openapi()
    for parameter in schema["properties"].values():
        if parameter.get("default", "") is None:
            del parameter["default"]  # with it the server would want a value
    for group in schema.get("definitions", {}).values():
        if "required" in group.get("properties", {}):
            group.pop("additionalProperties", None)
    return schema


def _reset(client: SyncPrefectClient, entry: Entry, existing: DeploymentResponse) -> list[str]:
    said = [
        f"{entry.name}: undone: {schedule.schedule.model_dump_json(exclude_none=True)}, "
        f"{'active' if schedule.active else 'inactive'}, parameters {schedule.parameters}"
        for schedule in existing.schedules
    ]
    if existing.parameters:
        said.append(f"{entry.name}: undone: parameters {existing.parameters}")
    for schedule in existing.schedules:
        client.delete_deployment_schedule(existing.id, schedule.id)
    if entry.schedules:
        client.create_deployment_schedules(existing.id, list(entry.schedules))
    client.update_deployment(existing.id, DeploymentUpdate(parameters={}, paused=False))
    return said


def main(arguments: "Sequence[str] | None" = None) -> None:
    """Deploy to the server that PREFECT_API_URL names, and print what was done."""
    parser = argparse.ArgumentParser(prog="python -m flows.server.deploy", description=__doc__)
    parser.add_argument("--pool", default="sdpo", help="work pool")
    parser.add_argument("--folder", type=Path, help="where relative paths of flows start")
    parser.add_argument("--reports", type=Path, help="runs whose reports the server serves")
    parser.add_argument("--suffix", default="", help="what the deployments' names end in")
    parser.add_argument(
        "--reset-schedules", action="store_true", help="undo what was set, and say what that was"
    )
    given = parser.parse_args(arguments)
    for line in deploy(
        given.pool,
        folder=given.folder,
        reports=given.reports,
        suffix=given.suffix,
        reset_schedules=given.reset_schedules,
    ):
        print(line)


if __name__ == "__main__":
    main()
