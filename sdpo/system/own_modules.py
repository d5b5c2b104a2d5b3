"""Tell a process of this project's own, started by `python -m`, where to look for its modules.

Python looks in the current folder first. That is the user's, and what is there may have the name of
one of our packages, `partitions`, or of anything that those import, `types.py`.
"""

import os
import sys
from pathlib import Path

import sdpo


def module_path() -> dict[str, str]:
    """Return variables for such a process and those that it starts: the current folder is left out.

    A checkout that is not installed, but is run in its own folder, is put there by name.
    """
    # Of `PYTHONPATH=$PYTHONPATH:more` the first entry is empty where nothing was set before, and
    # Python takes that for the current folder.
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    checkout = _checkout()
    entries = given if checkout in given else [*filter(None, [checkout]), *given]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(entries)}


def _checkout() -> str:
    """Return the folder in which this process found the project as the current one; else empty."""
    first, *rest = [os.path.realpath(entry) for entry in sys.path] or [""]
    root = str(Path(sdpo.__file__).resolve().parents[1])
    return root if first == root and root not in rest else ""
