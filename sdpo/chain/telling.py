"""Write down where a run is, for other processes to read through :mod:`sdpo.store.run_status`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from sdpo.errors import Interrupted
from sdpo.events import (
    Event,
    Listener,
    NodeEvent,
    PhaseEvent,
    ProgressEvent,
    PublishedEvent,
    StageEvent,
    StateEvent,
    WaitEvent,
    WorkEvent,
)
from sdpo.hooks import Host
from sdpo.processes.pace import StageProgress
from sdpo.store.reuse import NOT_DONE
from sdpo.store.run_folder import RunFolder
from sdpo.store.run_status import By, State, Word, read_word, write_word

_EVERY_S = 1.0
"""Progress alone is written no more often than once in so many seconds."""
_WHY_LENGTH = 2000


@contextmanager
def telling(run: RunFolder, host: Host) -> Iterator[Host]:
    """Yield ``host`` with a listener that keeps the run's status, and write how the run ended."""
    teller = _Teller(run, host.listen)
    try:
        yield replace(host, listen=teller)
    except Interrupted as error:
        teller.end("interrupted", str(error))
        raise
    except Exception as error:
        teller.end("failed", str(error) or type(error).__name__)
        raise
    except BaseException:  # Ctrl-C, or whoever runs the chain ends it by a signal of its own
        teller.end("interrupted", "asked to stop")
        raise
    teller.end("done")


class _Teller:
    """A teller listens to a run, and keeps its status up to date."""

    def __init__(self, run: RunFolder, listen: Listener) -> None:
        self._run, self._listen = run, listen
        self._stages: dict[str, StageProgress] = {}
        self._before, now = read_word(run), datetime.now(UTC)
        self._word = Word(
            state="running",
            by=By.this_process(),
            since=now,
            updated=now,
            saved=self._before.saved if self._before else {},
            again=self._before.again if self._before else {},
        )
        self._said_s = 0.0
        # A call that finds everything done says nothing: it leaves no trace in the folder.
        self._has_said = False

    def __call__(self, event: Event) -> None:
        """Take note of an event, and pass it on."""
        self._heed(event)
        self._listen(event)

    def end(self, state: State, why: str = "") -> None:
        """Write how the run ended, and why."""
        if self._has_said or self._before is None or self._before.state != state:
            self._say(state=state, why=why[:_WHY_LENGTH], waits_for="", left_s=None)

    def _heed(self, event: Event) -> None:
        word = self._word
        match event:
            case NodeEvent(status="run"):
                again = {} if event.reason == NOT_DONE else {event.node: event.reason[:_WHY_LENGTH]}
                self._say(node=event.node, again=word.again | again, **_AT_NOTHING)
            case StageEvent(status="started"):
                self._stages[event.stage] = StageProgress()
                self._say(**_AT_NOTHING | {"stage": event.stage})
            case StageEvent():
                self._say(**_AT_NOTHING)
            case WorkEvent():
                self._stage(event).work = event.phases
            case PhaseEvent():
                self._say(phase=event.phase, done=None, total=None, unit="")
            case ProgressEvent():
                self._progress(event)
            case WaitEvent():
                waits = event.event == "waiting"
                self._say(state="waiting" if waits else "running", waits_for=event.message)
            case StateEvent():
                self._say(saved=word.saved | {event.step: (event.optimizer_step, event.total)})
            case PublishedEvent():
                self._say(saved={k: v for k, v in word.saved.items() if k != word.node})
            case _:
                pass

    def _stage(self, event: Event) -> StageProgress:
        return self._stages.setdefault(event.stage, StageProgress())

    def _progress(self, event: ProgressEvent) -> None:
        stage = self._stage(event)
        stage.take(event)
        is_new = event.phase != self._word.phase
        self._word = self._word.model_copy(
            update={
                "phase": event.phase,
                "done": event.done,
                "total": event.total,
                "unit": event.unit,
                "percent": round(stage.percent, 1),
                "left_s": stage.left_s,
            }
        )
        if is_new or time.monotonic() - self._said_s >= _EVERY_S:
            self._say()

    def _say(self, **changes: object) -> None:
        self._said_s, self._has_said = time.monotonic(), True
        self._word = self._word.model_copy(update={**changes, "updated": datetime.now(UTC)})
        write_word(self._run, self._word)


_AT_NOTHING: dict[str, object] = {
    **dict.fromkeys(("stage", "phase", "unit"), ""),
    **dict.fromkeys(("done", "total", "percent", "left_s")),
}
"""These values stand before a node or stage has said what it is doing."""
