"""Search settings with Optuna: each trial is proposed by what the trials before it came to.

Optuna's journal lies in the study's folder, so a search that was stopped goes on: a trial that was
under way is brought to its end. What a trial is told to have come to is its ranking accuracy on the
selection part of the reserve. Needs the extra ``sweep``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from sdpo.config import RunConfig
from sdpo.errors import ConfigError, Interrupted, UserError
from sdpo.events import NoteEvent
from sdpo.hooks import Host
from sdpo.identity.canonical import digest_of
from sdpo.stats.gamma import whole_reserve
from sdpo.store.plan_file import read_plan
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import read_probe
from sdpo.study.arms import Trial, essence
from sdpo.study.before import check_trials, withheld_from
from sdpo.study.compare import Keep, keeps_models
from sdpo.study.folder import StudyFile, StudyFolder, study_of
from sdpo.study.grid import MOST_TRIALS, Over, read_overs, trials_at
from sdpo.study.kept import kept_study
from sdpo.study.results import PairValues
from sdpo.study.run_trials import Outcome, let_go, run_trial
from sdpo.study.selection import select
from sdpo.study.split import split
from sdpo.study.sweep import SweepDone, write_best
from sdpo.study.sweep_page import write_sweep
from sdpo.system.json_values import Json
from sdpo.system.privacy import withholding

if TYPE_CHECKING:
    import optuna

T = TypeVar("T")

_OVER, _RECIPE = "over", "recipe"
_MISSING = "searching needs Optuna, which is not installed: pip install optuna (the extra `sweep`)"


class Pruned(Interrupted):
    """A trial was ended early, since others had come further at this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """A search is planned: its study, its settings, and how many trials it has in all."""

    study: StudyFolder
    config: RunConfig
    overs: tuple[Over, ...]
    given: tuple[str, ...]
    trials: int
    prune: bool


def plan_search(
    config: RunConfig, *, over: Sequence[str], trials: int, prune: bool, name: str = ""
) -> SearchPlan:
    """Decide what a search is; nothing is written.

    ``over``: ``key=0.01..0.3``, ``key=log:0.01..0.3`` or ``key=value,value``, a setting each.

    Raises:
        UserError: a setting is unknown or cannot be searched so, there are too few or too many
            trials, Optuna is not installed, or what has the study's name is something else.
    """
    if not 2 <= trials <= MOST_TRIALS:
        raise ConfigError(f"--trials {trials}: give 2 to {MOST_TRIALS}")
    study = study_of(config, kind="sweep", name=name)
    study.check("sweep")
    overs = read_overs(over, config=config, with_ranges=True)
    first, last = _corners(overs)
    if first == last:
        raise ConfigError(f"--over {' --over '.join(over)}: there is one value, nothing to search")
    trials_at(config, [first, last], folder=study.path)  # each is possible, and they differ
    _optuna()
    return SearchPlan(
        study=study,
        config=config,
        overs=tuple(overs),
        given=tuple(over),
        trials=trials,
        prune=prune,
    )


def _corners(overs: Sequence[Over]) -> list[dict[str, Json]]:
    """Return the first and the last values of all settings: they show whether each is possible."""
    first: dict[str, Json] = {o.key: _end(o.low, o) if o.is_range else o.values[0] for o in overs}
    last: dict[str, Json] = {o.key: _end(o.high, o) if o.is_range else o.values[-1] for o in overs}
    return [first, last]


def _end(value: float | None, over: Over) -> Json:
    return int(value or 0) if over.is_whole else value


def _optuna() -> None:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UserError(_MISSING) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(slots=True)
class _Search:
    """A search under way: Optuna's study, the trials so far, and what came of them."""

    plan: SearchPlan
    host: Host
    wait: bool
    db: "optuna.Study"
    outcome: Outcome = field(default_factory=Outcome)
    trials: list[Trial] = field(default_factory=list)
    pruned: dict[str, str] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict)


def run_search(
    plan: SearchPlan,
    *,
    keep: Keep = "models",
    host: Host = Host(),
    host_of: Callable[[str], Host] | None = None,
    wait: bool = False,
) -> SweepDone:
    """Run trials until there are as many as planned, choose the best and report it.

    Raises:
        UserError: something that the recipe names is not there, the study was begun over other
            settings, or fewer than two trials came to a result.
        Interrupted: somebody asked to stop; the same call goes on.
    """
    shape = trials_at(plan.config, _corners(plan.overs)[:1], folder=plan.study.path)
    check_trials(plan.study, shape, keeps_models=keeps_models(keep), more=plan.trials - 1)
    said = StudyFile(kind="sweep", recipe=plan.config.name)
    with (
        withholding(withheld_from(plan.study, shape)),
        plan.study.held(said, wait=wait, listen=host.listen),
        kept_study(plan.study, plan.config.store, listen=host.listen, wait=wait) as saved,
    ):
        search = _Search(plan, host, wait, _open(plan), outcome=Outcome(saved=saved))
        for number in range(plan.trials):
            _step(search, number, host_of)
            if not keeps_models(keep):
                let_go(plan.study, search.trials, [])
        swept = select(
            plan.study.name,
            search.outcome.results,
            search.outcome.values,
            over=[each.key for each in plan.overs],
            seed=plan.config.probe.seed,
            failed={each.trial: each.why for each in search.outcome.failed},
        ).model_copy(update={"pruned": search.pruned, "importance": _importance(search.db)})
        recipe = write_best(plan.study, plan.config, search.trials, swept)
        write_sweep(plan.study, swept, recipe)
    return SweepDone(
        study=plan.study,
        swept=swept,
        recipe=recipe,
        failed=tuple(search.outcome.failed),
        ran=tuple(search.outcome.ran),
    )


def _open(plan: SearchPlan) -> "optuna.Study":
    """Open Optuna's study in the folder, or make it; refuse one over other settings."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = plan.study.journal
    # The study is held by this process alone: a lock is one that a process which died has left.
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    is_new = not path.is_file()
    if is_new and any(plan.study.path.glob("results/*.json")):
        raise UserError(
            f"study {plan.study.name} is a grid: a search (--trials) is another study: give it "
            "another name (--name)"
        )
    db = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        study_name=plan.study.name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
    )
    recipe = digest_of(essence(plan.config).as_json())
    if is_new or _RECIPE not in db.user_attrs:
        db.set_user_attr(_OVER, list(plan.given))
        db.set_user_attr(_RECIPE, recipe)
    if db.user_attrs[_RECIPE] != recipe:
        raise UserError(
            f"study {plan.study.name} was begun with another recipe: give this one another name "
            "(--name), or undo the change"
        )
    if (before := db.user_attrs[_OVER]) != list(plan.given):
        raise UserError(
            f"study {plan.study.name} was begun over {' and '.join(before)}, and not over "
            f"{' and '.join(plan.given)}: give this one another name (--name)"
        )
    return db


def _distributions(overs: Sequence[Over]) -> "dict[str, optuna.distributions.BaseDistribution]":
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for over in overs:
        if not over.is_range or over.low is None or over.high is None:
            choices = [json.dumps(value) for value in over.values]
            found[over.key] = CategoricalDistribution(choices)
        elif over.is_whole:
            found[over.key] = IntDistribution(int(over.low), int(over.high), log=over.is_log)
        else:
            found[over.key] = FloatDistribution(over.low, over.high, log=over.is_log)
    return found


def _step(search: _Search, number: int, host_of: Callable[[str], Host] | None) -> None:
    """Bring trial ``number`` to its end, proposing it where that was not done yet."""
    import optuna

    plan, db = search.plan, search.db
    there = db.get_trials(deepcopy=False)
    if number >= len(there):
        # What is proposed depends on the trials before it alone, wherever the search went on.
        db.sampler = optuna.samplers.TPESampler(seed=plan.config.training.seed + number)
        db.ask(_distributions(plan.overs))
        there = db.get_trials(deepcopy=False)
    frozen = there[number]
    if not frozen.params:  # killed between a trial and its settings
        if not frozen.state.is_finished():
            db.tell(number, state=optuna.trial.TrialState.FAIL)
        return
    (trial,) = trials_at(
        plan.config, [_point(frozen.params, plan)], folder=plan.study.path, prefix=f"t{number}."
    )
    if frozen.state == optuna.trial.TrialState.PRUNED:
        search.pruned[trial.arm] = _ended(frozen.intermediate_values)
        return
    same = digest_of(essence(trial.config).as_json()) if trial.config else ""
    if same in search.known:
        search.host.listen(NoteEvent(message=f"{trial.arm} was tried already"))
        if not frozen.state.is_finished():
            db.tell(number, search.known[same])
        return
    own = host_of(trial.name) if host_of else search.host
    if plan.prune and not frozen.state.is_finished():
        own = _watched(own, plan, number, db)
    try:
        done = run_trial(
            plan.study,
            list(search.trials),
            trial,
            host=search.host,
            own=own,
            wait=search.wait,
            outcome=search.outcome,
        )
    except Pruned:
        db.tell(number, state=optuna.trial.TrialState.PRUNED)
        reported = db.get_trials(deepcopy=False)[number].intermediate_values
        search.pruned[trial.arm] = _ended(reported)
        search.host.listen(NoteEvent(message=f"{trial.arm} {search.pruned[trial.arm]}"))
        search.trials.append(trial)
        return
    search.trials.append(trial)
    if done:
        search.known[same] = selection_accuracy(search.outcome.values[trial.name])
    if not frozen.state.is_finished():
        if done:
            db.tell(number, search.known[same])
        else:
            db.tell(number, state=optuna.trial.TrialState.FAIL)


def _point(params: Mapping[str, Json], plan: SearchPlan) -> dict[str, Json]:
    """Return the settings of a trial: choices are kept as JSON."""
    ranges = {over.key for over in plan.overs if over.is_range}
    return {
        over.key: params[over.key] if over.key in ranges else json.loads(str(params[over.key]))
        for over in plan.overs
    }


def _ended(values: Mapping[int, float]) -> str:
    step = max(values, default=0)
    accuracy = values.get(step, 0.0)
    return f"was ended after step {step}, at {100 * accuracy:.1f}% on the selection part"


def selection_accuracy(values: PairValues) -> float:
    """Return the share of the selection part's pairs with gamma > 0.

    Raises:
        UserError: the part is empty.
    """
    chosen = split(values, "selection")
    if not len(chosen.pair_id):
        raise UserError(
            "the part of the reserve for selection is empty, so nothing can be chosen: set more "
            "pairs aside (data.reserve)"
        )
    return float(np.mean(chosen.gamma > 0))


def _watched(host: Host, plan: SearchPlan, number: int, db: "optuna.Study") -> Host:
    """Return a host that ends the trial's run after a step at which others had come further."""
    import optuna

    trial = optuna.trial.Trial(db, db.get_trials(deepcopy=False)[number]._trial_id)
    (asked,) = trials_at(
        plan.config,
        [_point(db.get_trials(deepcopy=False)[number].params, plan)],
        folder=plan.study.path,
        prefix=f"t{number}.",
    )
    run = plan.study.run(asked.name)

    def call(name: str, function: Callable[..., T], /, *args: object) -> T:
        result = host.call(name, function, *args)
        reported = db.get_trials(deepcopy=False)[number].intermediate_values
        step = max(reported, default=0) + 1
        accuracy = _accuracy_after(run, step)
        if accuracy is not None:
            trial.report(accuracy, step)
            if trial.should_prune():
                raise Pruned(f"ended after step {step}: others had come further")
        return result

    return replace(host, call=call)


def _accuracy_after(run: RunFolder, step: int) -> float | None:
    """Return the accuracy of M_step on the selection part; None before it is known, or where the
    step is the last one, after which there is nothing to end."""
    if run.find(f"probe-M_{step}") is None or step >= len(read_plan(run).steps):
        return None
    start, now = (whole_reserve(read_probe(run, model, last=step)) for model in (0, step))
    if start is None or now is None:
        return None
    values = PairValues(now.pair_id, now.prompt_key, start.gamma, now.gamma)
    return selection_accuracy(values)


def _importance(db: "optuna.Study") -> dict[str, float]:
    """Return how much each setting matters for the accuracy, as Optuna tells it; adds up to 1.

    Nothing where it cannot be told: too few trials, or none that differ.
    """
    import optuna

    complete = [t for t in db.get_trials(deepcopy=False) if t.value is not None]
    values = {trial.value for trial in complete}
    if len(complete) < 4 or len(values) < 2:
        return {}
    found = optuna.importance.get_param_importances(db)
    return {key: float(share) for key, share in found.items()}
