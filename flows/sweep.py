"""Define the Prefect flow that sweeps settings of a recipe, with a short form."""

from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.recipes.presets import configured
from flows.ui.folder import enter_folder
from flows.ui.form import Empty, form, required_list, required_text
from flows.ui.runpage import RunPage
from flows.ui.studycard import study_card
from sdpo.config.annotations import NO_UNIT, Unit
from sdpo.errors import ConfigError, Fault
from sdpo.study.page import arm_figures
from sdpo.study.run_trials import failures
from sdpo.study.sweep import SweepDone
from sdpo.study.sweep_page import conclude_sweep, pareto_figures, sweep_tables
from sdpo.study.sweeping import planned_sweep

_DESCRIPTIONS = {
    "recipe": "Name of a preset, or path of a recipe file (YAML) where the worker runs.",
    "over": "Settings and their values, one a line: `training.beta=0.03,0.1,0.3`; where trials are "
    "proposed also a range: `training.beta=log:0.01..0.3`. `step-2.beta` is of step 2.",
    "trials": "Let Optuna propose so many trials. Empty: every combination of the values.",
    "seeds": "Training seeds of each combination.",
    "prune": "Of proposed trials, end those early that fall behind.",
    "keep": "`models`: runs stay whole; `none`: once measured, their numbers alone stay.",
    "side_by_side": "So many runs at a time, each on devices of its own; on a CPU they share it.",
    "name": "Name of the study, which goes on if it is there. Empty: the recipe's with `-sweep`.",
    "limit": "Pairs per source, for a smoke run; 0: all. Empty: as the recipe says.",
    "overrides": "Settings of all trials, one a line: `training.epochs=2`.",
}


# Parameters are validated by the functions that are called, which say it better.
@form(_DESCRIPTIONS, labels={"over": "Settings to sweep", "name": "Name of the study"})
@flow(name="sdpo-sweep", flow_run_name="sweep {recipe}", validate_parameters=False)
def sweep(
    recipe: Annotated[str, required_text()] = "",
    over: Annotated[list[str], required_list()] = [],  # noqa: B006 - never mutated
    trials: Annotated[int | None, Unit("trials"), Empty("integer", least=0)] = None,
    seeds: Annotated[int, Unit(NO_UNIT)] = 1,
    prune: bool = False,
    keep: Literal["models", "none"] = "models",
    side_by_side: Annotated[int, Unit("runs")] = 1,
    name: str = "",
    limit: Annotated[int | None, Unit("pairs"), Empty("integer", least=0)] = None,
    overrides: list[str] = [],  # noqa: B006 - never mutated
) -> State[SweepDone]:
    """Train a recipe with other settings, choose the best and report it on pairs of its own."""
    enter_folder()
    if not recipe.strip():
        raise ConfigError("of which recipe are settings to be swept? Give `recipe`")
    limits = [] if limit is None else [f"data.limit={limit}"]
    config = configured(Path(recipe.strip()), overrides=[*limits, *(overrides or [])])
    # The page is named after the study, which is known before anything is written.
    study, _ = planned_sweep(
        config, over=over or [], trials=trials or 0, seeds=seeds, prune=prune, name=name
    )
    with RunPage(study.name) as page:
        _, run = planned_sweep(
            config,
            over=over or [],
            trials=trials or 0,
            seeds=seeds,
            prune=prune,
            name=name,
            keep=keep,
            side_by_side=side_by_side,
            host_of=page.host_of,
        )
        done = run(page.host)
        verdict, tables = conclude_sweep(done.swept), sweep_tables(done.swept)
        figures = [*pareto_figures(done.swept), *arm_figures(done.swept.found)]
        page.studied(study_card(study, verdict, figures, tables), tables, verdict.headline)
    if done.failed:
        raise Fault(failures(done.failed, study))
    return Completed(message=verdict.headline, data=done)
