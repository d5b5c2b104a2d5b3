"""Sweep settings of a recipe, from the values to the page: what `sdpo sweep` and its flow do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo.config import RunConfig
from sdpo.hooks import Host
from sdpo.study.arms import Trial
from sdpo.study.before import check_trials
from sdpo.study.compare import Keep, keeps_models
from sdpo.study.folder import StudyFile, StudyFolder, study_of
from sdpo.study.grid import Over, grid_trials, read_overs, recipe_text
from sdpo.study.run_trials import Failed
from sdpo.study.selection import Swept, select
from sdpo.study.side_by_side import check_side_by_side
from sdpo.study.sweep_page import write_sweep
from sdpo.study.trials import trials_run
from sdpo.system.files import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """A sweep is planned: its study, its settings, and the trials of its grid."""

    study: StudyFolder
    config: RunConfig
    overs: tuple[Over, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepDone:
    """A sweep was made: what it says, the best recipe, what failed and which trials ran now."""

    study: StudyFolder
    swept: Swept
    recipe: Path
    failed: tuple[Failed, ...]
    ran: tuple[str, ...]


def plan_sweep(
    config: RunConfig, *, over: Sequence[str], seeds: int = 1, name: str = ""
) -> SweepPlan:
    """Decide which runs a grid needs; nothing is written.

    ``over``: ``key=value,value``, a setting each. ``seeds``: training seeds of each combination.
    ``name``: of the study, by default the recipe's
    with ``-sweep``.

    Raises:
        UserError: a setting is unknown or cannot be swept so, two trials would train the same, or
            what has the study's name is something else.
    """
    study = study_of(config, kind="sweep", name=name)
    study.check("sweep")
    overs = read_overs(over, config=config, with_ranges=False)
    trials = grid_trials(config, overs, folder=study.path, seeds=seeds)
    return SweepPlan(study=study, config=config, overs=tuple(overs), trials=tuple(trials))


def run_sweep(
    plan: SweepPlan,
    *,
    keep: Keep = "models",
    host: Host = Host(),
    host_of: Callable[[str], Host] | None = None,
    wait: bool = False,
    side_by_side: int = 1,
) -> SweepDone:
    """Run what is not done of a grid, choose on one part of the reserve, report on the other.

    A trial that fails is left out and told of. ``host_of`` gives the host of each trial's chain.
    ``side_by_side``: so many trials run at a time, as processes of their own.

    Raises:
        UserError: something that a recipe names is not there, fewer than two trials came to a
            result, or the reserve is too small to be split.
        Interrupted: somebody asked to stop; the same call goes on.
    """
    keeps = keeps_models(keep)
    check_side_by_side(plan.trials, side_by_side)
    check_trials(plan.study, plan.trials, keeps_models=keeps, at_once=side_by_side)
    said = StudyFile(kind="sweep", recipe=plan.config.name)
    with trials_run(
        plan.study,
        plan.trials,
        said,
        side_by_side=side_by_side,
        host=host,
        host_of=host_of,
        keeps_models=keeps,
        wait=wait,
    ) as outcome:
        swept = select(
            plan.study.name,
            outcome.results,
            outcome.values,
            over=[each.key for each in plan.overs],
            seed=plan.config.probe.seed,
            failed={each.trial: each.why for each in outcome.failed},
        )
        recipe = write_best(plan.study, plan.config, plan.trials, swept)
        write_sweep(plan.study, swept, recipe)
    return SweepDone(
        study=plan.study,
        swept=swept,
        recipe=recipe,
        failed=tuple(outcome.failed),
        ran=tuple(outcome.ran),
    )


def write_best(
    study: StudyFolder, config: RunConfig, trials: Sequence[Trial], swept: Swept
) -> Path:
    """Write the recipe of the best trial as a file and return its path."""
    best = next(trial for trial in trials if trial.name == swept.best)
    assert best.config is not None  # a sweep has no existing runs
    write_text(study.best, recipe_text(best.config, name=f"{config.name}-best"))
    return study.best
