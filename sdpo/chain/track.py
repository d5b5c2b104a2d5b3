"""Tell trackers what the chain measured, once more whenever the report is new."""

from sdpo.chain.context import Context
from sdpo.chain.node import EVERYTHING, Find, Identity, Made, Node
from sdpo.processes.stage_specs import TrackSpec
from sdpo.report import summarise
from sdpo.report.tracked import markdown, tracked_scalars
from sdpo.system.files import file_digest

TRACKERS = "trackers"
"""The node has this name; the report does not depend on it."""


def tell_trackers(context: Context) -> list[Node]:
    """Return the node that feeds the recipe's trackers; none where it names no tracker."""
    tracking, run = context.config.tracking, context.run
    if not tracking.tools:
        return []

    def identity() -> Identity:
        return {
            "run": run.name,
            "tools": list(tracking.tools),
            "project": tracking.project,
            "with_report": tracking.report,
            # A dry run comes here before there is one.
            "report": file_digest(run.report)[:16] if run.report.is_file() else "",
        }

    def make(_find: Find) -> Made:
        config = context.config
        spec = TrackSpec(
            name=TRACKERS,
            run=run.path,
            model=config.model,
            launch=config.launch.alone,
            tracking=tracking,
            settings=config.training.model_dump(mode="json"),
            scalars=tracked_scalars(run.path),
            summary=markdown(summarise(run.path)),
            report=run.report if tracking.report else None,
        )
        context.stage(spec)
        return Made({}, [])

    return [
        Node(
            name=TRACKERS,
            title="trackers",
            inputs=(EVERYTHING,),
            identity=identity,
            make=make,
            is_view=True,
        )
    ]
