"""Define what a stage tells the process that started it, and the chain whoever listens to it.

A stage writes one JSON object per line to a file, which outlives both processes and needs no pipe
that could fill up or break. Each kind of event is a model of its own, told from the others by
``event``. A listener may read a field as an attribute, or by its name as in the file.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

M = TypeVar("M", bound=BaseModel)

_PROGRESS_EVERY_S = 0.2


class AnyEvent(BaseModel):
    """All events have this in common.

    ``stage``: the stage that told it, empty for the chain's own; ``time``: seconds since the epoch,
    0 where it did not come from a file.
    """

    model_config = ConfigDict(frozen=True)

    time: float = 0.0
    stage: str = ""

    def __getitem__(self, name: str) -> object:
        """Return the field ``name``.

        Raises:
            KeyError: this kind of event has none of that name.
        """
        if name not in type(self).model_fields:
            raise KeyError(name)
        value: object = getattr(self, name)
        return value

    def get(self, name: str, default: object = None) -> object:
        """Return the field ``name``, or ``default`` where this kind of event has none."""
        return self[name] if name in type(self).model_fields else default


class PhaseEvent(AnyEvent):
    """This says that a phase begins which has no steps to count."""

    event: Literal["phase"] = "phase"
    phase: str
    detail: str = ""


class WorkEvent(AnyEvent):
    """This gives a stage's phases in order, with their cost in pairs times forwards."""

    event: Literal["work"] = "work"
    phases: dict[str, int]


class ProgressEvent(AnyEvent):
    """This says how far a phase is.

    ``total`` is None where nobody knows; ``size``: how much it is for a person, who does not count
    in ``unit``.
    """

    event: Literal["progress"] = "progress"
    phase: str
    done: int
    total: int | None
    unit: str
    note: str = ""
    size: str = ""


class WarningEvent(AnyEvent):
    """This says something that belongs in front of a person and into the report."""

    event: Literal["warning"] = "warning"
    message: str


class NoteEvent(AnyEvent):
    """This says something that is good to know."""

    event: Literal["note"] = "note"
    message: str


class PublishedEvent(AnyEvent):
    """This says that a step or guide is complete: ``name`` of its model, and the model's digest."""

    event: Literal["published"] = "published"
    name: str
    model: str


class StateEvent(AnyEvent):
    """This says that a resume state was saved, or is where the training of ``step`` goes on."""

    event: Literal["checkpoint", "resume"]
    step: str
    optimizer_step: int
    total: int


class ResultEvent(AnyEvent):
    """This says that a stage has done its work; further fields are those of its own result."""

    model_config = ConfigDict(frozen=True, extra="allow")

    event: Literal["result"] = "result"

    def __getitem__(self, name: str) -> object:
        """Return a field of the event, or of the result."""
        told = self.model_extra or {}
        return told[name] if name in told else super().__getitem__(name)

    def read(self, kind: type[M]) -> M:
        """Return the stage's result, which is of this ``kind``."""
        return kind.model_validate(self.model_extra)


class ErrorEvent(AnyEvent):
    """This says that a stage has failed.

    ``user``: by a mistake of who gave it its work; ``again``: it can be run again, with less;
    ``killed``: one of its processes was, which the others do not know.
    """

    event: Literal["error"] = "error"
    user: bool
    message: str
    again: bool = False
    killed: bool = False


class InterruptedEvent(AnyEvent):
    """This says that a stage was asked to stop, or that a run was found which had stopped before.

    Of such a run ``run`` is the name, and ``complete`` are its steps that are.
    """

    event: Literal["interrupted"] = "interrupted"
    message: str = ""
    run: str = ""
    complete: list[int] = []


class StageEvent(AnyEvent):
    """This says that a stage was started or has done its work; ``log`` has all that it prints."""

    event: Literal["stage"] = "stage"
    status: Literal["started", "completed"]
    log: str


class WaitEvent(AnyEvent):
    """This says that something which another process has is waited for, or no longer.

    ``what`` it is; ``message``: that, by whom it is held, and how not to wait.
    """

    event: Literal["waiting", "waited"]
    what: str
    message: str = ""


class NodeEvent(AnyEvent):
    """This says that a node of the chain has to be done, or stands; and why."""

    event: Literal["node"] = "node"
    node: str
    status: Literal["run", "reuse"]
    reason: str


Event = (
    PhaseEvent
    | WorkEvent
    | ProgressEvent
    | WarningEvent
    | NoteEvent
    | PublishedEvent
    | StateEvent
    | ResultEvent
    | ErrorEvent
    | InterruptedEvent
    | StageEvent
    | WaitEvent
    | NodeEvent
)
Listener = Callable[[Event], None]

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def event_of(fields: Mapping[str, object]) -> Event:
    """Return the event with these fields.

    Raises:
        ValidationError: there is no such event.
    """
    return _EVENT.validate_python(fields)


class EventWriter:
    """It appends events to a file; a writer without a path (other ranks) stays silent."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._last_progress_s = 0.0

    def emit(self, event: Event) -> None:
        """Write one event at once: what was given of it, and the time."""
        if self._path:
            fields = event.model_dump(mode="json", exclude={"event", "time"}, exclude_unset=True)
            line = {"event": event.event, "time": time.time(), **fields}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def progress(
        self, phase: str, done: int, total: int, *, unit: str, note: str = "", size: str = ""
    ) -> None:
        """Write how far a phase has come, at most every 0.2 s and always at its end.

        ``size``: how much it is for a person, who does not count in ``unit``.
        """
        now = time.monotonic()
        if done < total and now - self._last_progress_s < _PROGRESS_EVERY_S:
            return
        self._last_progress_s = now
        size = size or f"{total} {unit if total != 1 else unit.removesuffix('s')}"
        self.emit(
            ProgressEvent(phase=phase, done=done, total=total, unit=unit, note=note, size=size)
        )

    def warning(self, message: str) -> None:
        """Write a warning that belongs in front of a person and into the report."""
        self.emit(WarningEvent(message=message))

    def note(self, message: str) -> None:
        """Write what is good to know."""
        self.emit(NoteEvent(message=message))

    def phase(self, phase: str, *, detail: str = "") -> None:
        """Write that a phase begins which has no steps to count."""
        self.emit(PhaseEvent(phase=phase, detail=detail) if detail else PhaseEvent(phase=phase))

    def result(self, result: BaseModel) -> None:
        """Write what a stage's work came to; what it has not is left out."""
        self.emit(ResultEvent(**result.model_dump(mode="json", exclude_none=True)))


class EventReader:
    """It reads the events that came since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[Event]:
        """Yield new events."""
        return map(_EVENT.validate_json, self.lines())

    def lines(self) -> Iterator[bytes]:
        """Yield new events as they stand; a line that is not finished is left for the next look."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield line
