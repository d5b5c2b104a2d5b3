"""Ask whether the owner of this machine has permitted what a recipe may not decide by itself.

A recipe may come from somebody else, by a form, a schedule or a file. What would run code or reach
out is permitted by an environment variable of the process that works, and by nothing in a recipe.
"""

import os
from pathlib import Path

TASK_FOLDERS = "SDPO_TASK_FOLDERS"
"""The folders whose task files may be used, as PATH has them."""


def may_use_tasks_of(folder: Path) -> bool:
    """Return whether the task files in ``folder``, which run code, may be used on this machine."""
    given = [Path(entry) for entry in os.environ.get(TASK_FOLDERS, "").split(os.pathsep) if entry]
    real = folder.resolve()
    return any(real.is_relative_to(entry.resolve()) for entry in given if entry.is_absolute())
