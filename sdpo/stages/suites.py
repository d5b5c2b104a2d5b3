"""Find the tasks that the names in a recipe stand for; no model is loaded."""

from sdpo.evaluation.tasks import load_tasks
from sdpo.events import EventWriter
from sdpo.processes.judging_specs import SuitesSpec
from sdpo.processes.stage_results import SuitesResult


def run(spec: SuitesSpec, events: EventWriter) -> SuitesResult:
    """Return the tasks with what their results depend on."""
    events.phase("find tasks", detail=", ".join(spec.asked.names))
    return SuitesResult(suites=load_tasks(spec.asked).suites)
