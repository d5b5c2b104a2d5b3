"""Where a flow's relative paths start: the folder of whoever made the deployment.

The worker starts a flow in an empty folder and not there, since Prefect looks for the flow's module
in the current folder first: one of the user's that is called `flows` would be taken for ours.
"""

import os

from sdpo.errors import UserError

VARIABLE = "SDPO_FOLDER"
"""Environment variable of a deployment's runs."""


def enter_folder() -> None:
    """Go to the deployment's folder, if it names one.

    Raises:
        UserError: it is not there.
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
