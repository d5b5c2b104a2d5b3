"""Tell which model is in use under a name, in a sentence and as a page with its history."""

from pathlib import Path

from prefect.artifacts import create_table_artifact

from flows.ui.runpage import slug
from sdpo.promotion.versions import RegisteredModel
from sdpo.store.run_folder import RunFolder

_SHOWN = 50
"""A table has at most so many versions, the latest first."""


def tell_version(named: RegisteredModel, *, runs_dir: Path) -> str:
    """Put the versions of a model among the artifacts; return which one is in use."""
    version = named.in_use
    rows = [
        {
            "version": each.version,
            "in use": "✓" if each.version == named.current else "",
            "run": each.run,
            "model": f"M_{each.step}",
            "promoted": each.when,
            "why": each.why,
        }
        for each in reversed(named.versions[-_SHOWN:])
    ]
    create_table_artifact(rows, key=f"versions-{slug(named.name)}", description=named.name)
    model = RunFolder(runs_dir.absolute() / version.run).model(version.step)
    return (
        f"{named.name} is at version {version.version}: M_{version.step} of run {version.run}, "
        f"digest {version.digest[:16]}, in {model}"
    )
