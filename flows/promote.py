"""Define the Prefect flow that puts a finished run's model in use under a name."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.ui.folder import enter_folder
from flows.ui.form import RUNS_DIR, form, required_text
from flows.ui.registered import tell_version
from sdpo.errors import UserError
from sdpo.history.target import locate
from sdpo.promotion.versions import RegisteredModel
from sdpo.promotion.versions import promote as promote_model

_DESCRIPTIONS = {
    "run": "Run whose last model is put in use, by name; `RUN/step-2` is that step's.",
    "name": "Name that it is put in use under. Empty: that of the runs it comes from, else the "
    "run's own.",
    "reason": "Why; kept in the registry.",
    "runs_dir": RUNS_DIR,
}


# What is missing or cannot be is said by the functions that are called.
@form(_DESCRIPTIONS)
@flow(name="sdpo-promote", flow_run_name="promote {run}", validate_parameters=False)
def promote(
    run: Annotated[str, required_text()] = "",
    name: str = "",
    reason: str = "",
    runs_dir: str = "runs",
) -> State[RegisteredModel]:
    """Make a finished run's model the one in use of a name, after a check of its digest."""
    enter_folder()
    if not run.strip():
        raise UserError("which run's model is to be put in use? Give `run`, its name")
    folder = Path(runs_dir)
    found = promote_model(
        locate(run.strip(), runs_dir=folder), runs_dir=folder, name=name, why=reason
    )
    return Completed(message=tell_version(found, runs_dir=folder), data=found)
