"""Define the command line: the application, its options, its groups of commands.

It imports each command when that is called. Arguments are parsed and exit codes are set here; what
a command does is the business of :mod:`flows.commands`.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def _stranger(package: str) -> Path | None:
    """Return where Python takes a package of this project from, if that is somewhere else."""
    found = find_spec(package)
    places = (found.submodule_search_locations if found else None) or []
    place = Path(next(iter(places), "") or (found.origin if found else "") or "nowhere").resolve()
    return None if place == _ROOT / package else place


for _package in ("sdpo", "partitions"):
    if _place := _stranger(_package):
        print(
            f"error: Python takes `{_package}` from {_place}, and this project's is "
            f"{_ROOT / _package}: a folder of that name comes first (by PYTHONPATH, or the current "
            "folder after `python -m`). Rename it, or call the command `sdpo` without PYTHONPATH",
            file=sys.stderr,
        )
        raise SystemExit(2)
