"""Define the Prefect flow that writes a run's report anew, and its card."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.ui.folder import enter_folder, report_link
from flows.ui.form import RUNS_DIR, form, required_text
from flows.ui.runpage import RunPage
from sdpo.errors import UserError
from sdpo.history.target import locate_run
from sdpo.report import write_report
from sdpo.store.recorded import of_known_form
from sdpo.system.privacy import withheld_by_folder, withholding

_DESCRIPTIONS = {"run": "Run whose report is written anew, by name.", "runs_dir": RUNS_DIR}


# What is missing or cannot be is said by the functions that are called.
@form(_DESCRIPTIONS)
@flow(name="sdpo-report", flow_run_name="report {run}", validate_parameters=False)
def report(run: Annotated[str, required_text()] = "", runs_dir: str = "runs") -> State[Path]:
    """Write a run's report anew, as far as the run got, and put its card into the UI."""
    enter_folder()
    if not run.strip():
        raise UserError("which run's report is to be written? Give `run`, its name")
    found = locate_run(run.strip(), runs_dir=Path(runs_dir))
    found.check_own()
    found.read_run()
    with RunPage(found.name) as page:
        with withholding(withheld_by_folder(found.path)), of_known_form(found.path):
            path = write_report(found.path)
        page.finish(found.path)
    return Completed(message=f"report: {report_link(found.path) or path}", data=path)
