"""Run trials of a study side by side, each as a process of its own on devices of its own.

A trial that makes a first step alike, or S, with one before it waits until that one has ended, so
that it is trained once. Rows that several score at a time are shared out among them
(:mod:`sdpo.store.row_claims`). One that fails leaves the others; what stops the study ends all.
"""

import contextvars
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdpo.config import RunConfig
from sdpo.errors import ConfigError
from sdpo.events import (
    Event,
    Listener,
    NodeEvent,
    NoteEvent,
    ProgressEvent,
    WaitEvent,
    WarningEvent,
)
from sdpo.hooks import Host
from sdpo.inputs.devices import resolve_launch
from sdpo.processes.devices import SHARE, hold_devices
from sdpo.store.run_file import Origin
from sdpo.study.arm_process import TrialSpec, run_apart
from sdpo.study.arms import Trial, shared_steps
from sdpo.study.folder import StudyFolder
from sdpo.study.run_trials import Outcome, let_go, run_trial
from sdpo.system import machine
from sdpo.system.files import UNFINISHED, is_temporary, remove, temporary_folder

_LOOK_S = 0.2
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def check_side_by_side(trials: Sequence[Trial], count: int) -> None:
    """Refuse a number of trials at a time that this machine, or their recipes, do not allow.

    Raises:
        ConfigError: says why.
    """
    if count < 1:
        raise ConfigError(f"--side-by-side {count}: give 1 or more")
    if count > 1:
        places_of(trials, count)


def places_of(trials: Sequence[Trial], count: int) -> list[dict[str, str]]:
    """Return the variables of each place in which a trial can run: the devices that it has there.

    Raises:
        ConfigError: there are too few.
    """
    launches = [resolve_launch(each.config.launch) for each in trials if each.config is not None]
    if any(launch.launcher != "local" for launch in launches):
        raise ConfigError(
            f"--side-by-side {count}: a recipe's launch.launcher brings other nodes, which serve "
            "one run at a time: leave --side-by-side out, or set launch.launcher=local"
        )
    if not any(launch.device == "cuda" for launch in launches):
        return [{SHARE: "1"} for _ in range(count)]  # the study holds the CPU for all of them
    each = max(launch.processes for launch in launches)
    given = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    devices = given or [str(number) for number in range(len(machine.cuda_capabilities()))]
    if count * each > len(devices):
        raise ConfigError(
            f"--side-by-side {count}: a run has {each} processes (launch.processes), so {count} at "
            f"a time take {count * each} CUDA devices, and {len(devices)} are here: at most "
            f"{len(devices) // each} fit"
        )
    shares = [devices[at * each : (at + 1) * each] for at in range(count)]
    return [{_VISIBLE: ",".join(names)} for names in shares]


@dataclass(slots=True, kw_only=True)
class SideBySide:
    """Trials of a study run side by side, one in each of ``places``.

    ``locks`` are descriptors that their processes hold too. ``scratch`` is the folder of what these
    are told. See :func:`run_side_by_side` for the rest.
    """

    study: StudyFolder
    trials: Sequence[Trial]
    places: list[dict[str, str]]
    locks: tuple[int, ...]
    scratch: Path
    host: Host
    host_of: Callable[[str], Host] | None
    keeps_models: bool
    waits: bool
    outcome: Outcome
    stop: threading.Event = field(default_factory=threading.Event)
    speaks: threading.RLock = field(default_factory=threading.RLock)

    def until_all_have_ended(self) -> None:
        """Start what can be started and wait, until nothing is left; end all where that fails."""
        to_come, free = list(self.trials), list(self.places)
        busy: dict[Future[bool], tuple[Trial, dict[str, str]]] = {}
        with ThreadPoolExecutor(len(free)) as pool:
            try:
                while to_come or busy:
                    for trial in self._ready(to_come, [each for each, _ in busy.values()]):
                        if free:
                            to_come.remove(trial)
                            place, context = free.pop(0), contextvars.copy_context()
                            run = pool.submit(context.run, self._run, trial, place)
                            busy[run] = trial, place
                    for run in wait(busy, timeout=_LOOK_S, return_when=FIRST_COMPLETED).done:
                        trial, place = busy.pop(run)
                        free.append(place)
                        run.result()
                        self._let_go([*to_come, *(each for each, _ in busy.values())])
            except BaseException:
                self.stop.set()
                raise

    def _ready(self, to_come: Sequence[Trial], running: Sequence[Trial]) -> list[Trial]:
        """Return the trials that make nothing alike with one before them that has not ended."""
        open_ = [trial for trial in self.trials if trial in running or trial in to_come]
        return [
            trial
            for trial in to_come
            if not any(_makes_alike(each, trial) for each in open_[: open_.index(trial)])
        ]

    def _run(self, trial: Trial, place: Mapping[str, str]) -> bool:
        def chain(config: RunConfig, /, *, host: Host, origin: Origin | None, wait: bool) -> None:
            events = self.scratch / f"{trial.name}.jsonl"
            run_apart(
                TrialSpec(config=config, origin=origin, wait=wait, events=events),
                listen=host.listen,
                variables=place,
                keep=self.locks,
                alone=self.outcome.alone,
                stop=self.stop,
            )

        return run_trial(
            self.study,
            self.trials[: self.trials.index(trial)],
            trial,
            host=replace(self.host, listen=self._heard(self.host.listen)),
            own=self._own_host(trial),
            wait=self.waits,
            outcome=self.outcome,
            chain=chain,
        )

    def _own_host(self, trial: Trial) -> Host:
        """Return the host of a trial, whose events say whose they are to one who hears of all."""
        if self.host_of is not None:
            own = self.host_of(trial.name)
            return replace(own, listen=self._heard(own.listen))
        listen = self._heard(self.host.listen)
        return replace(self.host, listen=lambda event: listen(_named(event, trial.name)))

    def _heard(self, listen: Listener) -> Listener:
        """Return a listener that hears of one thread at a time."""

        def heard(event: Event) -> None:
            with self.speaks:
                listen(event)

        return heard

    def _let_go(self, to_come: Sequence[Trial]) -> None:
        if not self.keeps_models:
            ended = [trial for trial in self.trials if trial not in to_come]
            with self.outcome.alone:
                let_go(self.study, ended, to_come)


def run_side_by_side(
    study: StudyFolder,
    trials: Sequence[Trial],
    *,
    count: int,
    lock: int,
    host: Host,
    host_of: Callable[[str], Host] | None,
    keeps_models: bool,
    wait: bool,
    outcome: Outcome,
) -> Outcome:
    """Bring every trial to its end, ``count`` at a time; call it while holding the study.

    ``lock`` is the descriptor by which the study is held. For the others see
    :func:`sdpo.study.run_trials.run_trials`.

    Raises:
        Interrupted, KeyboardInterrupt: somebody asked to stop, and all trials have ended.
    """
    for path in study.path.glob(f"{UNFINISHED}*"):
        if is_temporary(path):  # of a process that was killed
            remove(path)
    places = places_of(trials, count)
    with temporary_folder(study.path) as scratch, _held(study, trials, host) as held:
        running = SideBySide(
            study=study,
            trials=trials,
            places=places,
            locks=(lock, *held),
            scratch=scratch,
            host=host,
            host_of=host_of,
            keeps_models=keeps_models,
            waits=wait,
            outcome=outcome,
        )
        running.until_all_have_ended()
    outcome.sort([trial.name for trial in trials])
    return outcome


def _held(
    study: StudyFolder, trials: Sequence[Trial], host: Host
) -> AbstractContextManager[tuple[int, ...]]:
    """Hold the CPU for all trials of a study, whose stages then do not wait for each other.

    On CUDA each stage holds its own devices.
    """
    launches = [resolve_launch(each.config.launch) for each in trials if each.config is not None]
    if not launches or any(launch.device == "cuda" for launch in launches):
        return nullcontext(())
    return hold_devices(launches[0], run=study.name, listen=host.listen, occupy=host.occupy)


def _makes_alike(one: Trial, other: Trial) -> bool:
    """Return whether two trials make the same first step, or both make S."""
    if one.config is None or other.config is None:
        return False
    both_make_s = one.config.supervised.enabled and other.config.supervised.enabled
    return both_make_s or shared_steps(one.config, other.config) > 0


def _named(event: Event, name: str) -> Event:
    """Return an event that says of which trial it is."""
    match event:
        case NodeEvent():
            return event.model_copy(update={"node": f"{name}: {event.node}"})
        case ProgressEvent():
            return event.model_copy(update={"phase": f"{name}: {event.phase}"})
        case NoteEvent() | WarningEvent() | WaitEvent():
            return event.model_copy(update={"message": f"{name}: {event.message}"})
        case _:
            return event
