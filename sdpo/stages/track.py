"""Tell trackers what a chain measured, as a stage: it needs no model and no device."""

import shutil

from sdpo.errors import Fault
from sdpo.events import EventWriter
from sdpo.processes.stage_results import TrackResult
from sdpo.processes.stage_specs import TrackSpec
from sdpo.stages.trackers import attach_report, start_trackers


def run(spec: TrackSpec, events: EventWriter) -> TrackResult:
    """Start each tracker, give it the numbers of M_0 to M_T by t, and the report.

    Raises:
        Fault: a tracker refused; what it got stays there.
    """
    from accelerate import Accelerator

    tools = spec.tracking.tools
    events.phase("tell trackers", detail=", ".join(tools))
    folder = spec.run / "tracking"
    shutil.rmtree(folder, ignore_errors=True)  # what was told before would stand beside it
    accelerator = Accelerator(cpu=True, log_with=list(tools), project_dir=str(folder))
    start_trackers(accelerator, spec.tracking, run=spec.run.name, name="", settings=spec.settings)
    try:
        for model, scalars in sorted(spec.scalars.items()):
            accelerator.log(scalars, step=model)
        for tracker in accelerator.trackers:
            last = max(spec.scalars, default=0)
            attach_report(tracker, report=spec.report, summary=spec.summary, model=last)
    except Exception as error:
        raise Fault(
            f"a tracker of tracking.tools ({', '.join(tools)}) refused what it was told: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
    return TrackResult(tools=list(tools))
