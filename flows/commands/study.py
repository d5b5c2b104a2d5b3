"""Say what a study would take before it starts: hours, disk and tokens of every run."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from flows.commands.foresight import Foresight, foresee
from flows.commands.run import scratch_run
from flows.show.console import Row, table
from sdpo.chain.context import Context
from sdpo.chain.data import prepare_data
from sdpo.chain.execute import execute
from sdpo.chain.plan import partition
from sdpo.chain.plan_pairs import needs_gamma
from sdpo.chain.reserve import reserve
from sdpo.chain.tokens import token_paths, tokenise
from sdpo.config import RunConfig
from sdpo.processes.disk_space import free_bytes, in_units
from sdpo.report.tables import UNKNOWN, count, duration
from sdpo.store.plan_file import read_plan
from sdpo.study.arms import Trial, shared_steps
from sdpo.study.before import needed_bytes
from sdpo.study.folder import StudyFolder
from sdpo.tokens.token_file import TokenFile


def foresee_study(
    study: StudyFolder,
    trials: Sequence[Trial],
    *,
    keeps_models: bool,
    console: Console,
    at_once: int = 1,
) -> None:
    """Print what the runs of a study would take, those that are done left out.

    ``at_once``: so many run at a time.
    """
    before: list[RunConfig] = []
    rows: list[Row] = []
    seconds = tokens = 0.0
    for trial in trials:
        config = trial.config
        if config is None or study.result(trial.name).is_file():
            rows.append(_row(trial.name, "is done: its results are read"))
            continue
        alike = max((shared_steps(other, config) for other in before), default=0)
        before.append(config)
        found = _foresee(config, alike, console=console)
        if found is None:
            rows.append(_row(trial.name, "its partition needs gamma of every pair first"))
            continue
        what = f"shares {alike} step{'s' * (alike != 1)} with another" if alike else ""
        rows.append(_row(trial.name, what, found))
        seconds, tokens = seconds + found.seconds, tokens + found.tokens
    console.print(table(rows, title="What it would take", numeric=("steps", "tokens", "time")))
    disk = needed_bytes(before, folder=study.path, keeps_models=keeps_models, at_once=at_once)
    console.print(
        f"in all: {len(before)} runs, roughly {duration(seconds)}, {count(round(tokens))} tokens "
        f"trained on, at most {in_units(disk)} of disk, of which "
        f"{in_units(free_bytes(study.path))} are free. Completions, KL and suites are not counted "
        f"in the time. Nothing was trained: {escape(str(study.path))}",
        highlight=False,
        soft_wrap=True,
    )


def _row(trial: str, what: str, found: Foresight | None = None) -> Row:
    return {
        "run": trial,
        "steps": count(found.steps) if found else UNKNOWN,
        "tokens": count(round(found.tokens)) if found else UNKNOWN,
        "time": duration(found.seconds) if found else UNKNOWN,
        "": what,
    }


def _foresee(config: RunConfig, alike: int, *, console: Console) -> Foresight | None:
    """Return what the steps of a recipe after the first ``alike`` would take.

    An order that gamma decides changes no sum, and is left as given. None where gamma decides the
    partition itself.
    """
    given = config.partition.model_copy(update={"order": "given"})
    with scratch_run(config.model_copy(update={"partition": given}), console=console) as context:
        execute(context, [prepare_data(context)])
        if needs_gamma(context):
            return None
        execute(context, [tokenise(context), reserve(context), partition(context)])
        return _of_plan(context, alike)


def _of_plan(context: Context, alike: int) -> Foresight:
    steps = [step.step for step in read_plan(context.run).steps if step.step > alike]
    return foresee(context, TokenFile.open(*token_paths(context)), steps)
