"""Let a flow's relative paths start in the folder of whoever made the deployment.

The worker starts a flow in an empty folder and not there, since Prefect looks for the flow's module
in the current folder first: a folder of the user's that is called `flows` would be taken for ours.
"""

import os
from pathlib import Path

from sdpo.errors import UserError

VARIABLE = "SDPO_FOLDER"
"""This environment variable tells a deployment's runs the folder."""
REPORTS = "SDPO_REPORTS"
"""This one tells them the folder of runs whose reports the server serves beside the UI."""
REPORTS_PATH = "/reports"
"""Reports are at this path of the server, followed by the run's name."""


def enter_folder() -> None:
    """Make the deployment's folder the current one, if the deployment names one.

    Raises:
        UserError: it cannot be entered.
    """
    if not (folder := os.environ.get(VARIABLE)):
        return
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"{folder}, where the deployment's relative paths start, cannot be entered "
            f"({os.strerror(error.errno or 0)}): start the server from another folder "
            "(sdpo server up)"
        ) from error


def report_link(run: Path) -> str:
    """Return where the UI's server has the report of the run in folder ``run``; empty: nowhere."""
    served = os.environ.get(REPORTS)
    if not served or run.resolve().parent != Path(served).resolve():
        return ""
    return f"{REPORTS_PATH}/{run.name}"
