"""Judge models of a run afterwards, by suites and judges that its recipe need not name."""

from collections.abc import Sequence
from dataclasses import dataclass

from sdpo.chain.evaluate import evaluations, find_suites
from sdpo.chain.execute import execute
from sdpo.chain.node import Errand, Part
from sdpo.chain.open_run import open_run
from sdpo.chain.track import tell_trackers
from sdpo.chain.views import write_report
from sdpo.chain.win_rates import win_rates
from sdpo.config import RunConfig, WinRateConfig
from sdpo.config.load import make_config
from sdpo.errors import ConfigError, UserError
from sdpo.hooks import Host
from sdpo.model_names import ModelName
from sdpo.report import write_report as render_report
from sdpo.store.run_folder import RunFolder
from sdpo.store.stored_run import read_stored


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation of a run's ``models``: the nodes that had to be done for it."""

    models: tuple[str, ...]
    executed: tuple[str, ...]


def evaluate_run(
    run: RunFolder,
    *,
    suites: Sequence[str] = (),
    win_rate: bool = False,
    models: Sequence[str] = (),
    overrides: Sequence[str] = (),
    host: Host = Host(),
    wait: bool = False,
) -> Evaluated:
    """Score the models of ``run``, by default all that are complete, on ``suites``, and with
    ``win_rate`` have a judge compare their answers.

    Where neither is asked for, both are done that its recipe and ``overrides`` name; these are of
    the group ``evaluation`` and hold for this call. What was scored before is not scored again.

    Raises:
        ConfigError: no suite and no judge is named, or a setting of another group is to be changed.
        UserError: a model is not there, or something that the suites name is not.
        Fault: a stage failed; what was scored before stands.
    """
    run.check_own()
    stored = read_stored(run).config
    for override in overrides:
        if not override.startswith("evaluation."):
            raise ConfigError(
                f"--set {override}: the run is made; only how it is judged can be set here "
                "(evaluation.limit, evaluation.chat_template ...)"
            )
    config = make_config(stored.model_dump(), overrides=overrides)
    config = _asked_for(config, suites=suites, win_rate=win_rate)
    complete = run.complete_steps()
    there = sorted({*complete, *([] if config.supervised.enabled else [0])})
    numbers = _numbers(models, there, run.name) if models else there
    with open_run(config, host=host, wait=wait) as context:
        planned = run.plan_file.is_file() and len(there) - 1 >= _planned(run)
        views: list[Part] = (
            [write_report(context), *tell_trackers(context)]
            if planned
            else [Errand(do=lambda: _render(run), title="report")]
        )
        done = execute(
            context,
            [
                *find_suites(context),
                *evaluations(context, numbers),
                *win_rates(context, numbers),
                *views,
            ],
        )
    names = tuple(str(ModelName(number)) for number in numbers)
    return Evaluated(models=names, executed=tuple(done.executed))


def _asked_for(config: RunConfig, *, suites: Sequence[str], win_rate: bool) -> RunConfig:
    """Return the recipe with what this call asks for, and nothing else to judge by."""
    judged = config.evaluation
    if win_rate and not judged.win_rate.is_on:
        raise ConfigError(
            "by which judge? Name one, --set evaluation.win_rate.judge.rule=on_topic, or a "
            "reward_model or endpoint, or in the recipe (evaluation.win_rate.judge)"
        )
    update: dict[str, object] = {}
    if suites or win_rate:
        update["suites"] = list(dict.fromkeys(suites))
        update["win_rate"] = judged.win_rate if win_rate else WinRateConfig()
    judged = judged.model_copy(update=update)
    if not judged.suites and not judged.win_rate.is_on:
        raise ConfigError(
            "by which suites? Name some, --suite h4 or --suite truthfulqa_mc2, or in the recipe "
            "(evaluation.suites); or by which judge (--win-rate)?"
        )
    return make_config({**config.model_dump(), "evaluation": judged.model_dump()})


def _numbers(models: Sequence[str], there: Sequence[int], run: str) -> list[int]:
    names = {str(ModelName(number)): number for number in there}
    for name in models:
        if name not in names:
            raise UserError(
                f"run {run} has no complete model {name}: there are {', '.join(names) or 'none'}"
            )
    return sorted({names[name] for name in models})


def _planned(run: RunFolder) -> int:
    from sdpo.store.records import PlanOutputs

    record = run.find("plan")
    return record.read_outputs(PlanOutputs).steps if record else 0


def _render(run: RunFolder) -> None:
    render_report(run.path)
