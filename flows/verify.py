"""Define the Prefect flow that checks whether a run is whole: every record, file and digest."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.ui.folder import enter_folder
from flows.ui.form import RUNS_DIR, form, required_text
from flows.ui.runpage import RunPage, slug
from sdpo.errors import UserError
from sdpo.history.target import locate_run
from sdpo.history.verify import verify_run
from sdpo.store.recorded import of_known_form
from sdpo.system.words import counted

_DESCRIPTIONS = {"run": "Run to check, by name.", "runs_dir": RUNS_DIR}


# What is missing or cannot be is said by the functions that are called.
@form(_DESCRIPTIONS)
@flow(name="sdpo-verify", flow_run_name="verify {run}", validate_parameters=False)
def verify(
    run: Annotated[str, required_text()] = "", runs_dir: str = "runs"
) -> State[list[dict[str, str]]]:
    """Check a run against its records; the flow run fails where there is a fault, and names all."""
    enter_folder()
    if not run.strip():
        raise UserError("which run is to be checked? Give `run`, its name")
    found = locate_run(run.strip(), runs_dir=Path(runs_dir))
    found.read_run()
    with RunPage(found.name) as page, of_known_form(found.path):
        findings = verify_run(found, listen=page.listen)
    checked = f"{counted(findings.records, 'record')}, {counted(findings.files, 'file')}"
    rows = [
        {"file": fault.file, "fault": fault.what, "what to do": fault.remedy}
        for fault in findings.faults
    ]
    if not rows:
        return Completed(message=f"run {found.name} is whole: {checked}, no fault", data=rows)
    create_table_artifact(rows, key=f"faults-{slug(found.name)}", description=f"Faults ({checked})")
    count = f"{len(rows)} fault{'s' * (len(rows) > 1)}"
    first = f"{rows[0]['file']} {rows[0]['fault']}"
    return Failed(message=f"run {found.name} has {count} ({checked}): {first}"[:1000], data=rows)
