"""Define the Prefect flow of a replay: make a step of a finished run again, and compare both."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.show.comparison import comparison_lines
from flows.ui.folder import enter_folder
from flows.ui.form import form, required_text
from flows.ui.runpage import RunPage, slug
from sdpo.config import StoreConfig
from sdpo.config.annotations import NO_UNIT, Unit
from sdpo.config.load import check_run_name, checked
from sdpo.errors import UserError
from sdpo.history.replay import ReplayResult, plan_replay, replay_step
from sdpo.history.target import locate

_DESCRIPTIONS = {
    "run": "Run, by name, whose step is made again.",
    "step": "Step to make again; 0: the supervised stage.",
    "overrides": "Settings to change: `training.beta=0.05`, one a line.",
    "only": "This step alone; else the later ones follow.",
    "name": "Name of the new run; empty: made from the old one's.",
    "store": "Folders.",
}


@form(_DESCRIPTIONS)
@flow(name="sdpo-replay", flow_run_name="{run}/step-{step}", validate_parameters=False)
def replay(
    run: Annotated[str, required_text(may_be_empty=True)] = "",
    step: Annotated[int, Unit(NO_UNIT)] = 1,
    overrides: list[str] = [],  # noqa: B006 - never mutated
    only: bool = False,
    name: str = "",
    store: StoreConfig = StoreConfig(),
) -> ReplayResult:
    """Make a step of a finished run again, as it was or with a setting changed, and compare."""
    enter_folder()
    if not run:
        raise UserError("which run is to be replayed? Give `run`, its name")
    runs_dir = Path(checked(StoreConfig, store, name="store").runs_dir)
    planned = plan_replay(
        locate(run, runs_dir=runs_dir, step=step).run,
        step=step,
        overrides=overrides,
        only=only,
        name=check_run_name(name) if name else "",
    )
    with RunPage(planned.config.name) as page:
        result = replay_step(planned, host=page.host)
        page.finish(result.chain.run)
    lines = comparison_lines(result.comparison, f"step {step} of {run} again")
    key = f"replay-{slug(planned.config.name)}"
    create_markdown_artifact("\n".join(lines), key=key, description="Compared with the original")
    return result
