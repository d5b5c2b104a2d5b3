"""Define the Prefect flow that puts an earlier version of a model back in use."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.ui.folder import enter_folder
from flows.ui.form import RUNS_DIR, Empty, form, required_text
from flows.ui.registered import tell_version
from sdpo.config.annotations import NO_UNIT, Unit
from sdpo.errors import UserError
from sdpo.promotion.versions import RegisteredModel
from sdpo.promotion.versions import rollback as roll_back

_DESCRIPTIONS = {
    "name": "Name that a run was promoted under.",
    "version": "Version to go back to. Empty: the one that the current one replaced.",
    "reason": "Why; kept in the registry.",
    "runs_dir": RUNS_DIR,
}


# What is missing or cannot be is said by the functions that are called.
@form(_DESCRIPTIONS)
@flow(name="sdpo-rollback", flow_run_name="roll back {name}", validate_parameters=False)
def rollback(
    name: Annotated[str, required_text()] = "",
    version: Annotated[int | None, Unit(NO_UNIT), Empty("integer", least=1)] = None,
    reason: str = "",
    runs_dir: str = "runs",
) -> State[RegisteredModel]:
    """Put an earlier version of a model back in use; no version is ever lost."""
    enter_folder()
    if not name.strip():
        raise UserError("which model is to go back? Give `name`, under which it was promoted")
    folder = Path(runs_dir)
    found = roll_back(name.strip(), runs_dir=folder, to=version, why=reason)
    return Completed(message=tell_version(found, runs_dir=folder), data=found)
