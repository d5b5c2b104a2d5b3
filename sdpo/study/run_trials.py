"""Run the trials of a study one after the other, each as an ordinary run that shares its caches.

What an earlier trial has made alike (pairs, the plan, a first step) is shared with a later one by
link, as an extended run shares what it comes from; log-probs come from the cache. A trial that is
complete is read. One that fails is told of, and the others go on: an interruption ends the study,
which goes on from there when it is called again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from partitions import PartitionError
from sdpo.chain.open_run import objection
from sdpo.chain.run_chain import run_chain
from sdpo.config import StoreConfig
from sdpo.errors import IntegrityError, Interrupted, SdpoError, UserError
from sdpo.events import NoteEvent, WarningEvent
from sdpo.hooks import Host
from sdpo.identity.canonical import digest_of
from sdpo.identity.differences import differences
from sdpo.identity.payloads import run_identity
from sdpo.inputs.resolve import cache_dir, resolve
from sdpo.store.run_file import Origin
from sdpo.store.run_folder import RunFolder, run_lock
from sdpo.store.stored_run import read_stored
from sdpo.study.arms import Trial, shared_steps
from sdpo.study.before import withheld_from
from sdpo.study.folder import StudyFile, StudyFolder
from sdpo.study.kept import kept_study
from sdpo.study.results import PairValues, TrialResult, judged_by, keep, kept, read_trial
from sdpo.study.scored import cached_rows, scored_since
from sdpo.system.files import read_json, write_json
from sdpo.system.privacy import withholding


@dataclass(frozen=True, slots=True)
class Failed:
    """A trial failed for this reason."""

    trial: str
    why: str


@dataclass(slots=True)
class Outcome:
    """Trials came to this, in their order; ``ran`` names those that were run now.

    ``saved`` is called when what came of one is kept.
    """

    results: list[TrialResult] = field(default_factory=list)
    values: dict[str, PairValues] = field(default_factory=dict)
    failed: list[Failed] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    saved: Callable[[], None] = field(default=lambda: None, repr=False)

    def add(self, result: TrialResult, values: PairValues) -> None:
        """Add what came of a trial."""
        self.results.append(result)
        self.values[result.trial] = values
        self.saved()


@contextmanager
def trials_run(
    study: StudyFolder,
    trials: Sequence[Trial],
    said: StudyFile,
    *,
    host: Host,
    host_of: Callable[[str], Host] | None,
    keeps_models: bool,
    wait: bool,
) -> Iterator[Outcome]:
    """Hold a study, its new files as private as its data, and yield what came of its trials.

    Raises:
        Interrupted, KeyboardInterrupt: as :func:`run_trials`.
    """
    with (
        withholding(withheld_from(study, trials)),
        study.held(said, wait=wait, listen=host.listen),
        kept_study(study, store_of(trials), listen=host.listen, wait=wait) as saved,
    ):
        yield run_trials(
            study,
            trials,
            host=host,
            host_of=host_of,
            keeps_models=keeps_models,
            wait=wait,
            outcome=Outcome(saved=saved),
        )


def store_of(trials: Sequence[Trial]) -> StoreConfig:
    """Return where the runs of trials are kept; below it their study's own files are."""
    stores = (trial.config.store for trial in trials if trial.config is not None)
    store = next(stores, StoreConfig())
    # A trial's is that of its study, whose name its own store ends with.
    return store.model_copy(update={"remote": store.remote.rstrip("/").rpartition("/")[0]})


def run_trials(
    study: StudyFolder,
    trials: Sequence[Trial],
    *,
    host: Host,
    host_of: Callable[[str], Host] | None = None,
    keeps_models: bool = True,
    wait: bool = False,
    outcome: Outcome | None = None,
) -> Outcome:
    """Bring every trial to its end and return what came of them; call it while holding the study.

    ``host`` calls each trial under the name of its arm; ``host_of`` gives the host of a trial's own
    chain, by default the same. Unless ``keeps_models``, a run goes as soon as its numbers are kept
    and no later trial shares a step with it.

    Raises:
        Interrupted, KeyboardInterrupt: somebody asked to stop.
    """
    outcome = outcome or Outcome()
    for number, trial in enumerate(trials):
        own = host_of(trial.name) if host_of else host
        run_trial(study, trials[:number], trial, host=host, own=own, wait=wait, outcome=outcome)
        if not keeps_models:
            let_go(study, trials[: number + 1], trials[number + 1 :])
    return outcome


def run_trial(
    study: StudyFolder,
    before: Sequence[Trial],
    trial: Trial,
    *,
    host: Host,
    own: Host,
    wait: bool,
    outcome: Outcome,
) -> bool:
    """Bring a trial to its end, add what came of it, and return whether it came to a result.

    ``before``: the trials that may have made something alike. ``host`` calls the trial, ``own`` is
    the host of its chain.

    Raises:
        Interrupted, KeyboardInterrupt: somebody asked to stop.
    """
    try:
        host.call(f"arm {trial.name}", _do, study, before, trial, own, wait, outcome)
    except (Interrupted, KeyboardInterrupt):
        raise
    except (SdpoError, PartitionError, OSError) as error:
        outcome.failed.append(Failed(trial.name, str(error) or type(error).__name__))
        host.listen(WarningEvent(message=f"{trial.name} failed: {outcome.failed[-1].why}"))
        return False
    return True


def _do(
    study: StudyFolder,
    before: Sequence[Trial],
    trial: Trial,
    host: Host,
    wait: bool,
    outcome: Outcome,
) -> None:
    """Run a trial, unless its results are known, and add what came of it."""
    if trial.run is not None:
        run = RunFolder(trial.run)
        run.check_own()
        outcome.add(*read_trial(run, trial=trial.name, arm=trial.arm, seed=None, scored={}))
        return
    assert trial.config is not None  # only an existing run has none
    if found := known(study, trial):
        host.listen(NoteEvent(message=f"{trial.name} is complete: its results are read"))
        outcome.add(*found)
        return
    cache = cache_dir(trial.config)
    start = _rows_before(study, trial, cache)
    origin = _origin(study, before, trial)
    run_chain(trial.config, host=host, origin=origin, wait=wait)
    outcome.ran.append(trial.name)
    result, values = read_trial(
        study.run(trial.name),
        trial=trial.name,
        arm=trial.arm,
        seed=trial.seed,
        scored=scored_since(start, cached_rows(cache)),
    )
    keep(study, result, values)
    outcome.add(result, values)


def known(study: StudyFolder, trial: Trial) -> tuple[TrialResult, PairValues] | None:
    """Return what came of a trial, if its results are those of its recipe and of the same data,
    and its model was judged as the recipe says.

    Raises:
        UserError: they are of another recipe, or its model was not judged so, and its run is gone.
    """
    found = kept(study, trial.name)
    if found is None or trial.config is None:
        return found
    resolved = resolve(trial.config)
    is_judged = found[0].judged_by == judged_by(resolved.config)
    if study.run(trial.name).run_file.is_file():
        return found if is_judged and not objection(study.run(trial.name), resolved) else None
    identity = run_identity(resolved.config, dict(resolved.inputs))
    if digest_of(identity) == digest_of(found[0].identity):
        if is_judged:
            return found
        raise UserError(
            f"study {study.name} has results of {trial.name}, whose model was judged in another "
            "way (evaluation) and is gone (--keep none): put `evaluation` back as it was, or give "
            "this study another name (--name)"
        )
    listed = "\n".join(f"  {line}" for line in differences(found[0].identity, identity))
    raise UserError(
        f"study {study.name} has results of {trial.name}, made from something else:\n{listed}\n"
        "give this study another name (--name), or undo the change"
    )


def _rows_before(study: StudyFolder, trial: Trial, cache: Path) -> Mapping[str, int]:
    """Return the rows that were cached before the trial began, which is noted when it does."""
    path = study.baseline(trial.name)
    if path.is_file():
        found = read_json(path)
        if not isinstance(found, dict) or not all(isinstance(n, int) for n in found.values()):
            raise IntegrityError(f"{path} is damaged: delete it, and rows are counted from now on")
        return found
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = cached_rows(cache)
    write_json(path, rows)
    return rows


def _origin(study: StudyFolder, before: Sequence[Trial], trial: Trial) -> Origin | None:
    """Return the trial before it, with which a new run shares what both have.

    None for a run that is there: it knows its own.
    """
    if study.run(trial.name).run_file.is_file():
        return None
    for earlier in reversed(before):
        run = study.run(earlier.name)
        if earlier.run is None and run.run_file.is_file():
            return Origin(
                kind="arm",
                run=run.name,
                path=str(run.path),
                identity=digest_of(read_stored(run).identity),
                step=0,
            )
    return None


def let_go(study: StudyFolder, done: Sequence[Trial], to_come: Sequence[Trial]) -> None:
    """Remove runs whose numbers are kept and of which no later trial shares a step."""
    later = [trial.config for trial in to_come if trial.config is not None]
    for trial in done:
        run = study.run(trial.name)
        if trial.config is None or not run.run_file.is_file() or not kept(study, trial.name):
            continue
        if any(shared_steps(trial.config, config) for config in later):
            continue
        with run_lock(run):
            run.clear(keep=set())


def failures(failed: Sequence[Failed], study: StudyFolder) -> str:
    """Return what to say of trials that failed: which, why, and how to go on."""
    lines = [f"{each.trial} failed: {each.why}" for each in failed]
    return "\n".join(
        [*lines, f"mend what is wrong and call the same again: study {study.name} goes on"]
    )
