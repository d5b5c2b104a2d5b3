"""Start trackers through accelerate, so that what they show of a run stands together."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from sdpo.config import TrackingConfig
from sdpo.errors import Fault

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker


def start_trackers(
    accelerator: "Accelerator",
    tracking: TrackingConfig,
    *,
    run: str,
    name: str,
    settings: Mapping[str, JsonValue],
    start: int = 0,
) -> None:
    """Start the trackers of ``accelerator`` for a part of a run, known by ``run`` and ``name``.

    ``name`` is the part's own, empty for what was measured in the end. ``start``: optimizer steps
    that are done before. Each tool writes where its own environment variables say.

    Raises:
        Fault: a tracker cannot be started; says which are named.
    """
    shown = f"{run}/{name}" if name else run
    kind = "step" if name else "measured"
    of_tools = {
        # It drops the points that were logged after the state which training goes on from.
        "tensorboard": {"purge_step": start + 1} if start else {},
        "wandb": {"name": shown, "group": run, "job_type": kind},
        "mlflow": {"run_name": shown},
        # A name that is there already would be gone on with, and its old points be kept.
        "trackio": {"name": shown, "group": run, "embed": False},
    }
    # TensorBoard takes numbers and text alone.
    told = {n: " ".join(map(str, v)) if isinstance(v, list) else v for n, v in settings.items()}
    try:
        accelerator.init_trackers(tracking.project, config=told, init_kwargs=of_tools)
    except Exception as error:
        raise Fault(
            f"a tracker of tracking.tools ({', '.join(tracking.tools)}) cannot be started: "
            f"{type(error).__name__}: {error}"
        ) from error


def attach_report(
    tracker: "GeneralTracker", *, report: Path | None, summary: str, model: int
) -> None:
    """Give a started tracker the report of M_0 to M_``model``: in short, and whole as an artifact.

    TensorBoard keeps no files: it gets the text, and the page beside its events.
    """
    match tracker.name:
        case "tensorboard":
            tracker.writer.add_text("report", summary)
            if report:
                shutil.copyfile(report, Path(tracker.logging_dir) / report.name)
        case "mlflow":
            import mlflow

            mlflow.set_tag("mlflow.note.content", summary)
            if report:
                tracker.log_artifact(str(report))
        case "wandb":
            import wandb

            tracker.run.notes = summary
            if report:
                artifact = wandb.Artifact(_artifact_name(tracker.run.group), type="report")
                artifact.add_file(str(report))
                tracker.run.log_artifact(artifact)
        case "trackio":
            import trackio

            tracker.run.log({"report": trackio.Markdown(summary)}, step=model)
            if report:
                named = _artifact_name(tracker.run.group)
                tracker.run.log_artifact(report, name=named, type="report")


def _artifact_name(run: str) -> str:
    """Return the artifact's name, of the characters that every tool allows in one."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "-" for c in run)
    return f"report-{kept}"
