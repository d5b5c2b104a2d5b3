"""A folder of a user's whose names are those of our packages, and of what these import."""

from pathlib import Path
from typing import Literal

PACKAGES = ("flows", "sdpo", "partitions", "prefect", "torch", "yaml", "types", "pydantic")
_SPEAKS = "raise SystemExit('a stranger')\n"
_PREFECT = "deployments: [{name: stranger, entrypoint: flows/align.py:align}]\n"


def fill(folder: Path, *, kind: Literal["packages", "folders", "files"] = "packages") -> None:
    """Put strangers there: packages, folders without a module in them, or modules.

    Each ends the program that imports it; somebody's own ``prefect.yaml`` is there too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prefect.yaml").write_text(_PREFECT, encoding="utf-8")
    for name in PACKAGES:
        if kind == "files":
            (folder / f"{name}.py").write_text(_SPEAKS, encoding="utf-8")
            continue
        (folder / name).mkdir(exist_ok=True)
        file = "__init__.py" if kind == "packages" else "data.csv"
        (folder / name / file).write_text(_SPEAKS, encoding="utf-8")
