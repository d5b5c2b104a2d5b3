"""The Prefect flow of scheduled retraining, with a person's approval where one is wanted.

Its deployment needs a concurrency limit of 1 with the collision strategy CANCEL_NEW: a slot that
comes while a run is at work is cancelled and not queued, so that missed slots do not pile up.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import NotPausedError
from prefect.flow_runs import pause_flow_run, resume_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.form import form
from flows.runpage import RunPage
from flows.slots import device_slot
from flows.tables import gate_rows
from sdpo.config import Group
from sdpo.promotion import GateSettings, Judgement
from sdpo.recipe import checked
from sdpo.retraining import Answer, Retrained
from sdpo.retraining import retrain as retrain_named
from sdpo.store import RunFolder

_POLL_S = 3
_MARGIN_S = 3600
"""Prefect fails a run whose pause timed out, so ours ends before: by an answer of our own."""


class LineageSettings(Group):
    """Which model is to grow."""

    name: str = Field(
        "",
        title="Name",
        description="Name that a run was promoted under (`sdpo promote`), or that run.",
    )
    runs_dir: str = Field(
        "runs", title="Folder of the runs", description="Where runs and their registry are kept."
    )


class NewDataSettings(Group):
    """Where new pairs come from, and how many make a step."""

    sources: list[str] = Field(
        [],
        title="Sources",
        description="Files, folders or hub names of preference pairs, read anew every time.",
    )
    min_new_pairs: int = Field(
        100,
        ge=1,
        title="New pairs needed",
        description="With fewer pairs that the model has not been trained on, no step is made.",
    )


class NewStepSettings(Group):
    """How the new step trains."""

    overrides: list[str] = Field(
        [],
        title="Overrides",
        description="Settings of the new step that differ from the run's, as `training.beta=0.05`.",
    )


class ApprovalSettings(Group):
    """Whether a person has the last word."""

    required: bool = Field(
        False,
        title="Ask a person",
        description="Pause after the gate has agreed until somebody answers in the UI. Nothing is "
        "held meanwhile.",
    )
    timeout_minutes: float = Field(
        24 * 60.0,
        gt=0,
        title="Wait for (minutes)",
        description="Without an answer after this time the model in use stays; the next call asks "
        "again.",
    )


class Approval(RunInput):
    """The form of a paused run."""

    approve: bool = Field(
        False, title="Promote it", description="Put the new model in use; otherwise the old stays."
    )
    reason: str = Field("", title="Why", description="Kept in the registry and in the run.")


_GROUPS = {
    "lineage": "Which model is to grow.",
    "data": "Where new pairs come from, and how many make a step.",
    "step": "How the new step trains.",
    "gate": "What the new model must hold before it replaces the current one.",
    "approval": "Whether a person has the last word.",
}


def _run_name() -> str:
    """The lineage and the time of its slot, by which a person tells the runs of a schedule."""
    given = flow_run.parameters.get("lineage")
    name = given.get("name") if isinstance(given, Mapping) else getattr(given, "name", "")
    return f"{name or 'retrain'} {flow_run.scheduled_start_time:%Y-%m-%d %H:%M} UTC"


# Parameters are validated by checked, which says it better.
@form(_GROUPS)
@flow(name="sdpo-retrain", flow_run_name=_run_name, validate_parameters=False)
def retrain(
    lineage: LineageSettings = LineageSettings(),
    data: NewDataSettings = NewDataSettings(),
    step: NewStepSettings = NewStepSettings(),
    gate: GateSettings = GateSettings(),
    approval: ApprovalSettings = ApprovalSettings(),
) -> State[Retrained]:
    """Make the pairs that a model has not seen its next step, and promote it if the gate agrees."""
    lineage = checked(LineageSettings, lineage, name="lineage")
    data = checked(NewDataSettings, data, name="data")
    step = checked(NewStepSettings, step, name="step")
    gate = checked(GateSettings, gate, name="gate")
    approval = checked(ApprovalSettings, approval, name="approval")

    shown: list[Judgement] = []

    def ask(judgement: Judgement, run: RunFolder) -> Answer:
        _show(judgement, lineage.name)
        shown.append(judgement)
        return ask_in_ui(judgement, run, timeout_s=approval.timeout_minutes * 60)

    with RunPage(lineage.name) as page:
        found = retrain_named(
            lineage.name,
            data.sources,
            runs_dir=Path(lineage.runs_dir),
            overrides=step.overrides,
            min_new_pairs=data.min_new_pairs,
            gate=gate,
            ask=ask if approval.required else None,
            call=page.call,
            listen=page.listen,
            occupy=device_slot,
        )
        if found.run:
            page.finish(found.run)
    if found.judgement and found.judgement not in shown:
        _show(found.judgement, found.name)
    get_run_logger().info("%s: %s", found.status, found.reason)
    return Completed(message=f"{found.status}: {found.reason}"[:1000], data=found)


def _show(judgement: Judgement, name: str) -> None:
    slug = "".join(c if c.isalnum() else "-" for c in name.lower())
    create_table_artifact(
        gate_rows(judgement),
        key=f"gate-{slug}",
        description=f"{judgement.outcome}: {judgement.reason}",
    )


def ask_in_ui(judgement: Judgement, run: RunFolder, *, timeout_s: float) -> Answer:
    """Pause the flow run until somebody answers its form, or until the time is over."""
    step = judgement.new
    form = Approval.with_initial_data(
        description=f"M_{step} of run {run.name} passed the gate: {judgement.reason}. Is it to "
        f"replace M_{judgement.current}? Its numbers are among the artifacts and in "
        f"{run.path / 'promotion.json'}."
    )
    run_id = flow_run.get_id()
    assert run_id, "only a flow run can be paused"
    with _answer_in_time(UUID(run_id), timeout_s) as over:
        said = pause_flow_run(
            wait_for_input=form,
            timeout=int(timeout_s) + _MARGIN_S,
            poll_interval=max(1, min(_POLL_S, int(timeout_s / 10))),
        )
    if over.is_set():
        return Answer(approved=None, why=said.reason)
    return Answer(approved=said.approve, why=said.reason)


@contextmanager
def _answer_in_time(run_id: UUID, timeout_s: float) -> Iterator[Flag]:
    """Within it a pause is ended after ``timeout_s``; whether it was, the flag says."""
    answered, over = Flag(), Flag()
    reason = f"nobody answered within {timeout_s / 60:g} minutes"

    def answer() -> None:
        if answered.wait(timeout_s):
            return
        while not over.is_set() and not answered.wait(1):
            try:
                over.set()
                resume_flow_run(run_id, run_input={"approve": False, "reason": reason})
            except NotPausedError:
                over.clear()  # somebody did at the last moment
                return
            except Exception:  # noqa: BLE001 - the server may be away for a while: once more
                over.clear()

    thread = Thread(target=answer, name="approval-timeout", daemon=True)
    thread.start()
    try:
        yield over
    finally:
        answered.set()
        thread.join()
