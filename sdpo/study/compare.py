"""Compare a recipe's arms, from their names to the page: what `sdpo compare` and its flow do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sdpo.config import RunConfig
from sdpo.errors import ConfigError
from sdpo.hooks import Host
from sdpo.study.arms import Arm, Trial, check_steps_there, named_arms, trials_of
from sdpo.study.before import check_trials
from sdpo.study.comparison import Comparison, compare
from sdpo.study.folder import StudyFile, StudyFolder, study_of
from sdpo.study.page import write_comparison
from sdpo.study.run_trials import Failed
from sdpo.study.side_by_side import check_side_by_side
from sdpo.study.trials import trials_run

Keep = Literal["models", "none"]


def keeps_models(keep: Keep) -> bool:
    """Return whether runs stay whole once their numbers are known.

    Raises:
        ConfigError: it is neither `models` nor `none`.
    """
    if keep not in get_args(Keep):
        raise ConfigError(f"keep is `{keep}`: give `models` or `none`")
    return keep == "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A comparison is planned: its study, its arms, and the trials that they are run as."""

    study: StudyFolder
    config: RunConfig
    arms: tuple[Arm, ...]
    trials: tuple[Trial, ...]

    @property
    def configs(self) -> list[RunConfig]:
        """Return the recipes of the runs that the study makes."""
        return [trial.config for trial in self.trials if trial.config is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A comparison was made: its numbers, its page, what failed and which trials ran now."""

    study: StudyFolder
    found: Comparison
    failed: tuple[Failed, ...]
    ran: tuple[str, ...]


def plan_comparison(
    config: RunConfig,
    *,
    names: str = "sdpo,dpo",
    own: Sequence[str] = (),
    seeds: int = 1,
    partition_seeds: bool = False,
    name: str = "",
) -> Plan:
    """Decide which runs a comparison needs; nothing is written.

    ``names``: arms, and runs that are there, with commas between; ``own``: arms of one's own, as
    ``name:key=value``. ``name``: of the study, by default the recipe's with ``-compare``.

    Raises:
        UserError: an arm is unknown, cannot be or is the same as another, or what has the study's
            name is something else.
    """
    study = study_of(config, kind="compare", name=name)
    study.check("compare")
    arms = named_arms(names, own, runs_dir=Path(config.store.runs_dir))
    for arm in arms:
        keys = [override.partition("=")[0].strip() for override in arm.overrides]
        check_steps_there(config, keys, option=f"--arm {arm.name}:")
    trials = trials_of(
        config, arms, seeds=seeds, partition_seeds=partition_seeds, folder=study.path
    )
    return Plan(study=study, config=config, arms=tuple(arms), trials=tuple(trials))


def check_plan(plan: Plan, *, keep: Keep, side_by_side: int = 1) -> None:
    """Refuse what would fail or be refused later, before anything is written.

    ``side_by_side``: so many trials are to run at a time.

    Raises:
        UserError: something that the recipe names is not there, or a run of the study was made from
            something else.
        DiskFullError: the disk is too small for the runs that are still to be made.
    """
    check_side_by_side(plan.trials, side_by_side)
    check_trials(plan.study, plan.trials, keeps_models=keeps_models(keep), at_once=side_by_side)


def run_comparison(
    plan: Plan,
    *,
    keep: Keep = "models",
    host: Host = Host(),
    host_of: Callable[[str], Host] | None = None,
    wait: bool = False,
    side_by_side: int = 1,
) -> Compared:
    """Run what is not done of a comparison, compare, and write the page.

    An arm that fails is left out and told of. ``host_of`` gives the host of each trial's chain.
    ``side_by_side``: so many trials run at a time, as processes of their own.

    Raises:
        UserError: as :func:`check_plan`, or fewer than two arms came to a result.
        Interrupted: somebody asked to stop; the same call goes on.
    """
    check_plan(plan, keep=keep, side_by_side=side_by_side)
    said = StudyFile(kind="compare", recipe=plan.config.name)
    keeps = keeps_models(keep)
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
        found = compare(
            plan.study.name,
            outcome.results,
            outcome.values,
            seed=plan.config.probe.seed,
            failed={each.trial: each.why for each in outcome.failed},
        )
        write_comparison(plan.study, found, plan.arms)
    return Compared(
        study=plan.study, found=found, failed=tuple(outcome.failed), ran=tuple(outcome.ran)
    )
