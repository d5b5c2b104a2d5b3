"""Run the trials of a study one after the other, each as an ordinary run that shares its caches.

What an earlier trial has made alike (pairs, the plan, a first step) is shared with a later one by
link, as an extended run shares what it comes from; log-probs come from the cache. A trial that is
complete is read. One that fails is told of, and the others go on: an interruption ends the study,
which goes on from there when it is called again.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from partitions import PartitionError
from sdpo.chain.open_run import objection
from sdpo.chain.run_chain import run_chain
from sdpo.config import RunConfig, StoreConfig
from sdpo.errors import Interrupted, SdpoError, UserError
from sdpo.events import NoteEvent, WarningEvent
from sdpo.hooks import Host
from sdpo.identity.canonical import digest_of
from sdpo.identity.differences import differences
from sdpo.identity.payloads import run_identity
from sdpo.identity.ranks import same_result
from sdpo.inputs.resolve import cache_dir, resolve
from sdpo.store.run_file import Origin
from sdpo.store.run_folder import RunFolder, run_lock
from sdpo.store.stored_run import read_stored
from sdpo.study.arms import Trial, shared_steps
from sdpo.study.folder import StudyFolder
from sdpo.study.results import PairValues, TrialResult, judged_by, keep, kept, read_trial
from sdpo.study.scored import rows_scored


class Chain(Protocol):
    """It brings the run of a recipe to its end."""

    def __call__(
        self, config: RunConfig, /, *, host: Host, origin: Origin | None, wait: bool
    ) -> object:
        """Return when it is there, or raise what :func:`run_chain` does."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A trial failed for this reason."""

    trial: str
    why: str


@dataclass(slots=True)
class Outcome:
    """Trials came to this, in their order; ``ran`` names those that were run now.

    ``saved`` is called when what came of one is kept. ``alone`` is for what one thread at a time
    may do, where trials run side by side.
    """

    results: list[TrialResult] = field(default_factory=list)
    values: dict[str, PairValues] = field(default_factory=dict)
    failed: list[Failed] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    saved: Callable[[], None] = field(default=lambda: None, repr=False)
    alone: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def add(self, result: TrialResult, values: PairValues) -> None:
        """Add what came of a trial."""
        self.results.append(result)
        self.values[result.trial] = values
        self.saved()

    def sort(self, order: Sequence[str]) -> None:
        """Put everything into this order of trials, in whatever order they have ended."""
        self.results.sort(key=lambda each: order.index(each.trial))
        self.failed.sort(key=lambda each: order.index(each.trial))
        self.ran.sort(key=order.index)


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
    chain: Chain = run_chain,
) -> bool:
    """Bring a trial to its end, add what came of it, and return whether it came to a result.

    ``before``: the trials that may have made something alike. ``host`` calls the trial, ``own`` is
    the host of its ``chain``.

    Raises:
        Interrupted, KeyboardInterrupt: somebody asked to stop.
    """
    try:
        host.call(f"arm {trial.name}", _do, study, before, trial, own, wait, outcome, chain)
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
    chain: Chain,
) -> None:
    """Run a trial, unless its results are known, and add what came of it."""
    if trial.run is not None:
        run = RunFolder(trial.run)
        run.check_own()
        outcome.add(*read_trial(run, trial=trial.name, arm=trial.arm, seed=None, scored={}))
        return
    assert trial.config is not None  # only an existing run has none
    with outcome.alone:
        found = known(study, trial)
    if found:
        host.listen(NoteEvent(message=f"{trial.name} is complete: its results are read"))
        outcome.add(*found)
        return
    chain(trial.config, host=host, origin=origin_of(study, before, trial), wait=wait)
    run = study.run(trial.name)
    with outcome.alone:
        outcome.ran.append(trial.name)
        result, values = read_trial(
            run,
            trial=trial.name,
            arm=trial.arm,
            seed=trial.seed,
            scored=rows_scored(cache_dir(trial.config), run),
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
    if same_result(identity, found[0].identity):
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


def origin_of(study: StudyFolder, before: Sequence[Trial], trial: Trial) -> Origin | None:
    """Return the trial before it, with which a new run shares what both have.

    It is the one with most first steps alike, of several the last. None for a run that is there: it
    knows its own.
    """
    assert trial.config is not None  # only an existing run has none
    if study.run(trial.name).run_file.is_file():
        return None
    found = [
        (shared_steps(earlier.config, trial.config), number, study.run(earlier.name))
        for number, earlier in enumerate(before)
        if earlier.config is not None and study.run(earlier.name).run_file.is_file()
    ]
    if not found:
        return None
    _, _, run = max(found, key=lambda each: each[:2])
    return Origin(
        kind="arm",
        run=run.name,
        path=str(run.path),
        identity=digest_of(read_stored(run).identity),
        step=0,
    )


def let_go(study: StudyFolder, done: Sequence[Trial], to_come: Sequence[Trial]) -> None:
    """Remove runs whose numbers are kept and of which no later trial shares a step."""
    later = [trial.config for trial in to_come if trial.config is not None]
    for trial in done:
        run = study.run(trial.name)
        if trial.config is None or not run.run_file.is_file() or not kept(study, trial.name):
            continue
        if any(shared_steps(trial.config, config) for config in later):
            continue
        if any(_comes_from(study.run(each.name), run) for each in to_come):
            continue
        with run_lock(run):
            run.clear(keep=set())


def _comes_from(run: RunFolder, other: RunFolder) -> bool:
    """Return whether a run that has begun shares what it can with another."""
    origin = read_stored(run).origin if run.run_file.is_file() else None
    return origin is not None and origin.run == other.name


def failures(failed: Sequence[Failed], study: StudyFolder) -> str:
    """Return what to say of trials that failed: which, why, and how to go on."""
    lines = [f"{each.trial} failed: {each.why}" for each in failed]
    return "\n".join(
        [*lines, f"mend what is wrong and call the same again: study {study.name} goes on"]
    )
