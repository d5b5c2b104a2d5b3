"""Define the Prefect flow that extends a finished run by a step over what is new in its data."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.ui.folder import enter_folder
from flows.ui.form import RUNS_DIR, form, required_list, required_text
from flows.ui.runpage import RunPage
from sdpo.config.annotations import Unit
from sdpo.errors import UserError
from sdpo.history.extend import Extension, extend_run
from sdpo.history.target import locate_run
from sdpo.system.words import counted

_DESCRIPTIONS = {
    "run": "Finished run whose chain grows, by name.",
    "sources": "Preference pairs, one file, folder or hub name a line; those that the run has are "
    "not new.",
    "overrides": "Settings of the new step that differ from the run's, as `training.beta=0.05`, "
    "one a line.",
    "name": "Name of the new run. Empty: made from the old one's.",
    "min_new_pairs": "With fewer new pairs no run is made.",
    "runs_dir": RUNS_DIR,
}


# What is missing or cannot be is said by the functions that are called.
@form(_DESCRIPTIONS, labels={"min_new_pairs": "New pairs needed"})
@flow(name="sdpo-extend", flow_run_name="extend {run}", validate_parameters=False)
def extend(
    run: Annotated[str, required_text()] = "",
    sources: Annotated[list[str], required_list()] = [],  # noqa: B006 - never mutated
    overrides: list[str] = [],  # noqa: B006 - never mutated
    name: str = "",
    min_new_pairs: Annotated[int, Unit("pairs")] = 1,
    runs_dir: str = "runs",
) -> State[Extension]:
    """Extend a run by a step over pairs that it has not seen, in a new run."""
    enter_folder()
    if not run.strip():
        raise UserError("which run is to grow? Give `run`, its name")
    found = locate_run(run.strip(), runs_dir=Path(runs_dir))
    with RunPage(name or found.name) as page:
        extension = extend_run(
            found,
            sources,
            overrides=overrides,
            name=name,
            min_new_pairs=min_new_pairs,
            host=page.host,
        )
        if extension.chain is None:
            what = (
                counted(extension.new_pairs, "new pair") if extension.new_pairs else "nothing new"
            )
            said = f"{what} for run {found.name}: no run is made"
            return Completed(message=said, data=extension)
        page.finish(extension.chain.run)
    said = f"{counted(extension.new_pairs, 'new pair')} made run {extension.chain.run.name}"
    return Completed(message=said, data=extension)
