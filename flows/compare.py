"""Define the Prefect flow that compares arms of a recipe, with a short form."""

from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.recipes.presets import configured
from flows.ui.folder import enter_folder
from flows.ui.form import Empty, form, required_text
from flows.ui.runpage import RunPage
from flows.ui.studycard import study_card
from sdpo.config.annotations import NO_UNIT, Unit
from sdpo.errors import ConfigError, Fault
from sdpo.study.arms import ARMS
from sdpo.study.compare import Compared, plan_comparison, run_comparison
from sdpo.study.conclusions import conclude
from sdpo.study.page import arm_figures, difference_figures
from sdpo.study.run_trials import failures
from sdpo.study.tables import comparison_tables

_ARMS = "\n\n".join(f"- `{arm.name}`: {arm.what}" for arm in ARMS.values())
_DESCRIPTIONS = {
    "recipe": "Name of a preset, or path of a recipe file (YAML) where the worker runs.",
    "arms": "Arms, one a line; the others are compared with the first. A name of none of these is "
    f"that of a finished run:\n\n{_ARMS}",
    "own": "Arms of your own, one a line: `name:training.beta=0.3,training.epochs=2`.",
    "seeds": "Training seeds of each arm.",
    "partition_seeds": "Draw the partition anew with each seed too.",
    "keep": "`models`: runs stay whole; `none`: once measured, their numbers alone stay.",
    "side_by_side": "So many runs at a time, each on devices of its own; on a CPU they share it.",
    "name": "Name of the study, which goes on if it is there. Empty: the recipe's with `-compare`.",
    "limit": "Pairs per source, for a smoke run; 0: all. Empty: as the recipe says.",
    "overrides": "Settings of all arms, one a line: `training.epochs=2`.",
}


# Parameters are validated by the functions that are called, which say it better.
@form(_DESCRIPTIONS, labels={"own": "Arms of your own", "name": "Name of the study"})
@flow(name="sdpo-compare", flow_run_name="compare {recipe}", validate_parameters=False)
def compare(
    recipe: Annotated[str, required_text()] = "",
    arms: list[str] = ["sdpo", "dpo"],  # noqa: B006 - never mutated
    own: list[str] = [],  # noqa: B006 - never mutated
    seeds: Annotated[int, Unit(NO_UNIT)] = 1,
    partition_seeds: bool = False,
    keep: Literal["models", "none"] = "models",
    side_by_side: Annotated[int, Unit("runs")] = 1,
    name: str = "",
    limit: Annotated[int | None, Unit("pairs"), Empty("integer", least=0)] = None,
    overrides: list[str] = [],  # noqa: B006 - never mutated
) -> State[Compared]:
    """Train a recipe in several ways and say, with intervals, which is better."""
    enter_folder()
    if not recipe.strip():
        raise ConfigError("which recipe is to be compared? Give `recipe`: a preset, or a path")
    limits = [] if limit is None else [f"data.limit={limit}"]
    config = configured(Path(recipe.strip()), overrides=[*limits, *(overrides or [])])
    plan = plan_comparison(
        config,
        names=",".join(arms or []),
        own=own or [],
        seeds=seeds,
        partition_seeds=partition_seeds,
        name=name,
    )
    with RunPage(plan.study.name) as page:
        done = run_comparison(
            plan, keep=keep, host=page.host, host_of=page.host_of, side_by_side=side_by_side
        )
        verdict, tables = conclude(done.found), comparison_tables(done.found)
        figures = [*arm_figures(done.found), *difference_figures(done.found)]
        page.studied(study_card(plan.study, verdict, figures, tables), tables, verdict.headline)
    if done.failed:
        raise Fault(failures(done.failed, plan.study))
    return Completed(message=verdict.headline, data=done)
