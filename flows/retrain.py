"""Define the Prefect flow of scheduled retraining, with a person's approval where one is wanted.

A slot that comes while a run of the same lineage is at work, or waits for an approval, is cancelled
and not queued, so that missed slots do not pile up. The lineage's lock keeps two of them apart, and
not a concurrency limit of the deployment: Prefect gives up a run's place in a limit where the run
pauses or the server restarts, and ends the run minutes later because its place is gone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed
from pydantic import Field

from flows.ui.approval import ask_in_ui
from flows.ui.folder import enter_folder
from flows.ui.form import Asks, form
from flows.ui.runpage import RunPage
from sdpo.config import Group
from sdpo.config.annotations import Unit
from sdpo.config.load import checked
from sdpo.errors import InUseError
from sdpo.history.new_prompts import new_round
from sdpo.promotion.judge import GateSettings, Judgement
from sdpo.promotion.retrain import Answer, Retrained, find_named
from sdpo.promotion.retrain import retrain as retrain_named
from sdpo.store.run_folder import RunFolder


class LineageSettings(Group):
    """These settings say which model is to grow."""

    main_setting = "name"

    name: str = Field(
        "",
        title="Name",
        description="Name that a run was promoted under (`sdpo promote`), or that run.",
    )
    runs_dir: str = Field(
        "runs", title="Folder of the runs", description="Where runs and their registry are kept."
    )


class NewDataSettings(Group):
    """These settings say where new pairs come from, and how many make a step."""

    sources: list[str] = Field(
        [],
        title="Sources",
        description="Files, folders or hub names of preference pairs, read anew every time.",
    )
    prompts: str = Field(
        "",
        title="Prompts",
        description="In place of sources: a file of prompts, read anew every time. The model in "
        "use answers those that no step has answered, and pairs are made of that.",
    )
    generate: list[str] = Field(
        [],
        title="Settings of the round",
        description="How pairs are made of answers, where that differs from the recipe's last "
        "rounds, one a line: `judge.rule=asks_back`, `n=8`.",
    )
    min_new_pairs: Annotated[int, Unit("pairs")] = Field(
        100,
        ge=1,
        title="New pairs needed",
        description="With fewer pairs (or prompts) that are new to the model, no step is made.",
    )


class NewStepSettings(Group):
    """These settings say how the new step trains."""

    overrides: list[str] = Field(
        [],
        title="Overrides",
        description="Settings of the new step that differ from the run's, as `training.beta=0.05`.",
    )


class ApprovalSettings(Group):
    """These settings say whether a person has the last word."""

    required: bool = Field(
        False,
        title="Ask a person",
        description="Pause after the gate has agreed until somebody answers in the UI. No device "
        "is held meanwhile.",
    )
    timeout_minutes: Annotated[float, Unit("minutes")] = Field(
        24 * 60.0,
        gt=0,
        title="Wait for (minutes)",
        description="Without an answer after this time the model in use stays; the next call asks "
        "again.",
    )


_GROUPS = {
    "lineage": "These settings say which model is to grow.",
    "data": "These settings say where new pairs come from, and how many make a step.",
    "step": "These settings say how the new step trains.",
    "gate": "These settings say what the new model must hold before it replaces the current one.",
    "approval": "These settings say whether a person has the last word.",
}


def _run_name() -> str:
    """Return the lineage's name and the time of its slot, which identify a run of a schedule."""
    given = flow_run.parameters.get("lineage")
    name = given.get("name") if isinstance(given, Mapping) else getattr(given, "name", "")
    return f"{name or 'retrain'} {flow_run.scheduled_start_time:%Y-%m-%d %H:%M} UTC"


# Parameters are validated by checked, which says it better.
@form(_GROUPS)
@flow(name="sdpo-retrain", flow_run_name=_run_name, validate_parameters=False)
def retrain(
    lineage: Annotated[LineageSettings, Asks("name")] = LineageSettings(),
    data: Annotated[NewDataSettings, Asks("sources", instead="prompts")] = NewDataSettings(),
    step: NewStepSettings = NewStepSettings(),
    gate: GateSettings = GateSettings(),
    approval: ApprovalSettings = ApprovalSettings(),
) -> State[Retrained]:
    """Train a model's next step on pairs that it has not seen; promote it if the gate agrees."""
    enter_folder()
    lineage = checked(LineageSettings, lineage, name="lineage")
    data = checked(NewDataSettings, data, name="data")
    step = checked(NewStepSettings, step, name="step")
    gate = checked(GateSettings, gate, name="gate")
    approval = checked(ApprovalSettings, approval, name="approval")

    with RunPage(lineage.name) as page:

        def ask(judgement: Judgement, run: RunFolder) -> Answer:
            page.judged(judgement, run.path)
            in_use = find_named(lineage.name, runs_dir=Path(lineage.runs_dir)).in_use
            return ask_in_ui(
                judgement,
                run,
                page=page.judgement,
                can_roll_back=bool(in_use.replaced),
                timeout_s=approval.timeout_minutes * 60,
            )

        try:
            found = retrain_named(
                lineage.name,
                data.sources,
                runs_dir=Path(lineage.runs_dir),
                overrides=step.overrides,
                min_new_pairs=data.min_new_pairs,
                made=new_round(data.prompts, data.generate),
                gate=gate,
                ask=ask if approval.required else None,
                host=page.host,
            )
        except InUseError as error:
            return Cancelled(message=f"left out: {error.what} is in use by {error.by}"[:1000])
        if found.judgement and found.run:
            page.judged(found.judgement, found.run)
        if found.run:
            page.finish(found.run)
    # Where no step was made, the reason says so itself.
    said = f"{found.status}: {found.reason}" if found.run else found.reason
    get_run_logger().info("%s", said)
    return Completed(message=said[:1000], data=found)
