"""What the Prefect server knows of one flow run: asked for all, it answers with 200 rows."""

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun


def tasks_of(run: FlowRun) -> list[TaskRun]:
    """Its task runs, in the order in which they started."""
    with get_client(sync_client=True) as client:
        tasks = client.read_task_runs(flow_run_filter=_only(run))
    return sorted(tasks, key=lambda task: str(task.start_time))


def artifacts_of(run: FlowRun) -> dict[str, Artifact]:
    """Its artifacts by key; each is there once, and brought up to date."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(flow_run_filter=_only(run))
    by_key = {artifact.key or "": artifact for artifact in found}
    assert len(by_key) == len(found), sorted(str(artifact.key) for artifact in found)
    return by_key


def _only(run: FlowRun) -> FlowRunFilter:
    return FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
