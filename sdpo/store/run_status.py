"""Tell where a run is: what its process said last, and whether that process still works on it.

The word is in ``logs/status.json``, written while the run is held; no node depends on it. Whether
it still counts is known by the run's lock, which the kernel frees with its holder: who says that he
works and holds no lock was killed.
"""

import getpass
import os
import re
import socket
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sdpo.errors import IntegrityError, SdpoError
from sdpo.store.records import PlanOutputs
from sdpo.store.run_file import Origin
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import json_of, read_small, temporary_path
from sdpo.system.locks import Held, look

State = Literal["running", "waiting", "interrupted", "failed", "killed", "done"]
_WORKS = ("running", "waiting")
_EVALUATION = re.compile(r"(?:eval|win)-(M_\d+)-")
_QUIET_S = 600.0
"""A process on another host that has said nothing for so many seconds, and whose lock is not seen
here, is taken for killed."""


class By(BaseModel):
    """This process works on a run, or worked on it last; ``flow_run``: its id in Prefect."""

    model_config = ConfigDict(frozen=True)

    pid: int
    host: str
    user: str
    flow_run: str = ""

    @classmethod
    def this_process(cls) -> "By":
        """Return what is to be said of this process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user need not have a name
            user = str(os.getuid())
        flow_run = os.environ.get("PREFECT__FLOW_RUN_ID", "")
        return cls(pid=os.getpid(), host=socket.gethostname(), user=user, flow_run=flow_run)


class Word(BaseModel):
    """This is what the process that works on a run said last.

    ``node``: of the chain; ``stage``: the child process that does its work; ``done`` of ``total``
    ``unit`` of ``phase``; ``percent`` of the stage, and ``left_s`` seconds of it. ``waits_for`` is
    what another process has. ``saved``: the last resume state of each step that is not complete, as
    optimizer steps. ``why`` it stopped. ``again``: nodes that were made once more, by this process
    or one before it, and why. Times are by ISO 8601.
    """

    model_config = ConfigDict(frozen=True)

    state: State
    by: By
    since: datetime
    updated: datetime
    node: str = ""
    stage: str = ""
    phase: str = ""
    done: int | None = None
    total: int | None = None
    unit: str = ""
    percent: float | None = None
    left_s: float | None = None
    waits_for: str = ""
    saved: dict[str, tuple[int, int]] = {}
    why: str = ""
    again: dict[str, str] = {}


class RunStatus(BaseModel):
    """A status says where a run is; ``state`` is None where its folder cannot be read.

    ``steps`` of ``planned`` are complete (0: it has no plan yet); ``damaged`` are run.yaml, where
    it cannot be read, and nodes whose record is not the one that was written. ``word`` is None
    where no process of this version has worked on it. ``ends``: its process was killed, and the
    stage that it had started still ends. ``evaluated``: how many tasks of suites each model was
    scored on, by its name.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    path: str
    state: State | None = None
    steps: int = 0
    planned: int = 0
    created: str = ""
    origin: Origin | None = None
    damaged: tuple[str, ...] = ()
    word: Word | None = None
    ends: bool = False
    evaluated: dict[str, int] = {}

    @property
    def works(self) -> bool:
        """Return whether a process works on it, or waits to."""
        return self.state in _WORKS


def read_status(run: RunFolder) -> RunStatus:
    """Return where ``run`` is; what is damaged in it counts as not there."""
    word, held = read_word(run), None
    if word is None or word.state in _WORKS:
        held = look(run.lock_file)
        word = read_word(run)  # again: it may have ended between the two
    seals, (head, unreadable) = run.seals(), _head(run)
    damaged = [*unreadable, *(node for node, whole in seals.items() if whole is False)]
    origin = head.origin
    steps = sum(bool(whole) for node, whole in seals.items() if _is_step(node))
    planned = _planned(run)
    last = min(planned, origin.step) if origin and origin.only else planned
    is_done = bool(seals.get("report")) and (bool(damaged) or 0 < last <= steps)
    return RunStatus(
        run=run.name,
        path=str(run.path.absolute()),
        state="done" if is_done and held is None else _state(word, held),
        steps=steps,
        planned=last,
        created=head.created,
        origin=origin,
        damaged=tuple(damaged),
        word=word,
        ends=held is not None and held.is_orphan,
        evaluated=_evaluated(seals),
    )


def _state(word: Word | None, held: Held | None) -> State:
    """Return the state of a run that is not done, or that somebody holds."""
    if held is not None and not held.is_orphan:
        return word.state if word and word.state in _WORKS else "running"
    if word is None or word.state == "done":
        return "interrupted"
    if word.state not in _WORKS:
        return word.state
    silent_s = (datetime.now(UTC) - word.updated).total_seconds()
    is_here = word.by.host == socket.gethostname()
    return "killed" if is_here or silent_s > _QUIET_S else word.state


class _Head(BaseModel):
    """A list of runs shows this of run.yaml."""

    created: str = ""
    origin: Origin | None = None


def _head(run: RunFolder) -> tuple[_Head, list[str]]:
    """Return what run.yaml says, and its name where it cannot be read."""
    try:
        return _Head.model_validate(run.read_head("created", "origin")), []
    except (SdpoError, ValidationError):
        return _Head(), ["run.yaml"]


def _planned(run: RunFolder) -> int:
    try:
        plan = run.find("plan")
        return plan.read_outputs(PlanOutputs).steps if plan else 0
    except IntegrityError:
        return 0


def _evaluated(seals: Mapping[str, bool | None]) -> dict[str, int]:
    """Return how many evaluations each model has, by the names of the nodes that are whole."""
    models = [
        match[1] for node, whole in seals.items() if whole and (match := _EVALUATION.match(node))
    ]
    return dict(sorted(Counter(models).items()))


def _is_step(node: str) -> bool:
    return node.startswith("step-") and node != "step-0"


def read_word(run: RunFolder) -> Word | None:
    """Return what the process that works on ``run`` said last; None where nothing can be read."""
    path = run.status_file
    try:
        return Word.model_validate(json_of(read_small(str(path)), path))
    except (OSError, IntegrityError, ValidationError):
        return None


def write_word(run: RunFolder, word: Word) -> None:
    """Write ``word`` for readers of the status. A disk that refuses it is no reason to end a
    run."""
    path = run.status_file
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(exist_ok=True)
        # Not synced: after a crash of the machine it would not count.
        temporary.write_text(word.model_dump_json(), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
