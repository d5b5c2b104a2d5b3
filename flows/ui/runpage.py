"""Show a run in the Prefect UI: its tasks, its log lines, its artifacts.

The UI is a view: where the server cannot be reached, or is restarted, the run goes on without it.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import TypeVar, cast
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import (
    TableArtifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.show.console import Cell, Row, interruption, reason_of, where_it_stands
from flows.show.tables import partition_rows
from flows.ui.guardian import RUN_ID, guarded
from flows.ui.judgement import judgement_page
from flows.ui.runcard import gamma_ref_rows, run_card, table_rows
from flows.ui.slots import device_slot
from flows.ui.suspension import Suspension
from partitions import PartitionError
from sdpo.chain.execute import Execution
from sdpo.errors import Interrupted, UserError
from sdpo.events import (
    Event,
    InterruptedEvent,
    NodeEvent,
    NoteEvent,
    ProgressEvent,
    PublishedEvent,
    StageEvent,
    StateEvent,
    WaitEvent,
    WarningEvent,
    WorkEvent,
)
from sdpo.hooks import Host
from sdpo.processes.pace import StageProgress
from sdpo.processes.supervisor import terminate_with_parent
from sdpo.promotion.judge import Judgement
from sdpo.report import summarise
from sdpo.report.tables import Table
from sdpo.store.run_folder import RunFolder
from sdpo.system.streams import visible

T = TypeVar("T")

_EVERY_S = 5.0
"""Two updates of a progress artifact are at least so many seconds apart."""
_PATIENCE_S = 30.0
"""A server that did not answer is left alone for so many seconds."""
_LINES = 500
"""The UI gets at most so many log lines of one run; all of them are in the stages' logs."""
_LINE_LENGTH = 2000

_logger = logging.getLogger(__name__)


def _message_alone(record: logging.LogRecord) -> bool:
    """Let a record pass, without the traceback of a mistake whose message says everything."""
    if record.exc_info and isinstance(record.exc_info[1], UserError | PartitionError):
        record.exc_info = None
    return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_message_alone)


def task_call(name: str, function: Callable[..., T], /, *args: object) -> T:
    """Run a node as a Prefect task: called directly, so that it sees signals in the main thread.

    A node decides by its record whether it is done; Prefect's own cache does not look at the disk.
    A node that ends with its run, as by Cancel, is shown as cancelled: Prefect would say crashed.
    """
    ended: list[BaseException] = []

    @task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
    def node() -> T | State[T]:
        try:
            return function(*args)
        except (TerminationSignal, KeyboardInterrupt, Interrupted) as error:
            ended.append(error)
            return Cancelled(message="Ended with the run, which can be gone on with.")

    result = node()
    if ended:
        raise ended[0]
    return cast(T, result)


def _node_line(event: NodeEvent) -> str:
    if event.status == "reuse":
        return f"{event.node} {event.reason or 'is done'}"
    why = reason_of(event)
    return f"{event.node} begins{f': {why}' if why else ''}"


class RunPage:
    """A page shows one flow run: enter it, and give its ``host`` to the chain."""

    def __init__(self, name: str) -> None:
        self._slug = slug(name)
        self._lines: set[str] = set()
        self._silent = 0
        self._left_alone_until_s = 0.0
        self._bars: dict[str, _Bar] = {}
        self._made: dict[str, _Bar] = {}
        self._tables: dict[str, UUID] = {}
        self._suspension = Suspension()
        self._is_judged = False
        self.judgement: UUID | None = None
        """The artifact by which a person judges the new model, once it is there."""

    @property
    def host(self) -> Host:
        """Return what the flow gives the engine: its tasks, this page, the slots of its devices."""
        return Host(call=self.call, listen=self.listen, occupy=device_slot)

    def host_of(self, name: str) -> Host:
        """Return the host of one of several runs that the flow run makes: its artifacts have keys
        of their own."""
        inner = RunPage(f"{self._slug}-{name}")
        inner._suspension = self._suspension
        return inner.host

    def __enter__(self) -> "RunPage":
        if RUN_ID in os.environ:  # a worker that was killed ends nothing itself
            terminate_with_parent()
        self._watched = ExitStack()
        self._watched.enter_context(guarded(flow_run.run_count))
        self._watched.enter_context(self._suspension)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watched.__exit__(kind, error, traceback)

    def call(self, name: str, function: Callable[..., T], /, *args: object) -> T:
        """Run a node as a task, then show the tables that it changed."""
        self._suspension.heed()
        result = task_call(name, function, *args)
        if args and isinstance(args[0], Execution):
            self._publish(name, args[0].context.run.path)
        return result

    def listen(self, event: Event) -> None:
        """Show an event of the run, if it is one for the page."""
        self._suspension.heed()
        match event:
            case WarningEvent():
                self._say(logging.WARNING, event.message)
            case NoteEvent():
                self._say(logging.INFO, event.message)
            case WaitEvent(event="waiting"):
                self._say(logging.WARNING, event.message)
            case InterruptedEvent():
                self._say(logging.INFO, interruption(event))
            case StateEvent():
                self._say(logging.INFO, where_it_stands(event))
            case NodeEvent():
                self._say(logging.INFO, _node_line(event))
            case PublishedEvent():
                self._say(logging.INFO, f"published {event.name} {event.model}")
            case StageEvent():
                self._stage(event)
            case WorkEvent():
                self._bars[event.stage].state.work = event.phases
            case ProgressEvent():
                self._progress(event)
            case _:
                pass

    def finish(self, run: Path) -> None:
        """Show the run card, as an artifact."""
        text = run_card(run, summarise(run))
        what = f"Run {run.name}: outcome, lineage, files"
        key = f"run-{self._slug}"
        self._show(lambda: create_markdown_artifact(text, key=key, description=what))

    def studied(self, card: str, tables: Sequence[Table], headline: str) -> None:
        """Show what a study came to: its card, and its tables as artifacts of their own."""
        for table in tables:
            if rows := table_rows(table):
                self._table(f"study-{slug(table.title.split()[0])}", rows, table.note)
        key = f"study-{self._slug}"
        self._show(lambda: create_markdown_artifact(card, key=key, description=headline))

    def judged(self, judgement: Judgement, run: Path) -> None:
        """Put the page there by which a person judges the new model; once."""
        if self._is_judged:
            return
        self._is_judged = True
        text = judgement_page(judgement, RunFolder(run))
        key = f"judgement-{self._slug}"
        what = f"M_{judgement.new} against M_{judgement.current}: {judgement.outcome}"

        def show() -> None:
            made = create_markdown_artifact(text, key=key, description=what)
            self.judgement = cast(UUID, made)  # a coroutine only where there is an event loop

        self._show(show)

    def _stage(self, event: StageEvent) -> None:
        name = event.stage
        if event.status == "started":
            self._say(logging.INFO, f"{name}: everything it prints is in {event.log}")
            new = _Bar(f"progress-{self._slug}-{slug(name)}", name.replace("-", " "))
            if (before := self._made.get(name)) is not None:
                new.artifact = before.artifact  # of a stage that is done twice, one
            self._bars[name] = self._made[name] = new
        elif bar := self._bars.pop(name, None):
            self._show(bar.finish)

    def _progress(self, event: ProgressEvent) -> None:
        bar = self._bars.get(event.stage)
        if bar is None:
            return
        bar.state.take(event)
        if bar.is_due:
            self._show(bar.show)

    def _publish(self, name: str, run: Path) -> None:
        """Show the tables that the node called ``name`` changes."""
        if name == "partition":
            self._table("partition", partition_rows(run), "Pairs of every step and source")
        elif name.startswith("step ") and not name.startswith("step 0"):
            what = (
                "gamma_ref of every step on every probe: log p(chosen) - log p(rejected). A step "
                "scores all of its D_t under its reference; every model is measured on the reserve "
                "and on a sample of each D_t (probe.max_pairs)."
            )
            self._table("gamma-ref", gamma_ref_rows(run), what)
            reserve = summarise(run).tables[-1]
            self._table(
                "reserve", table_rows(reserve), f"Accuracies on the reserve. {reserve.note}"
            )

    def _table(self, what: str, rows: Sequence[Row], description: str) -> None:
        table = [dict(row) for row in rows]
        key = f"{what}-{self._slug}"
        self._show(lambda: self._put_table(key, table, description))

    def _put_table(self, key: str, table: list[dict[str, Cell]], description: str) -> None:
        """Make a table once in an attempt at the run, then update it, so that it is listed once."""
        if made := self._tables.get(key):
            data = TableArtifact(table=table).format(_sync=True)  # type: ignore[call-arg]
            try:
                with get_client(sync_client=True) as client:
                    client.update_artifact(made, ArtifactUpdate(data=data, description=description))
                return
            except httpx.HTTPStatusError as error:
                if error.response.status_code != HTTPStatus.NOT_FOUND:
                    raise  # else somebody has deleted it
        new = create_table_artifact(table, key=key, description=description)
        self._tables[key] = cast(UUID, new)  # a coroutine only where there is an event loop

    def _say(self, level: int, message: str) -> None:
        """Write a message to the UI's log: once, on one line, and no more than a person reads."""
        line = visible(" ".join(message.split()))[:_LINE_LENGTH]
        if line in self._lines:
            return
        if len(self._lines) < _LINES:
            self._lines.add(line)
            get_run_logger().log(level, line)
        elif not self._silent:
            self._silent = 1
            get_run_logger().warning(
                "there is more: see the logs of the stages in the run's folder"
            )

    def _show(self, show: Callable[[], object]) -> None:
        """Call ``show``; a server that does not answer is no reason to end a run."""
        if time.monotonic() < self._left_alone_until_s:
            return
        try:
            show()
        except (httpx.HTTPError, PrefectException, OSError) as error:
            self._left_alone_until_s = time.monotonic() + _PATIENCE_S
            _logger.warning("the Prefect server did not answer: %s", error)


class _Bar:
    """A bar is the progress artifact of a stage."""

    def __init__(self, key: str, what: str) -> None:
        self.state = StageProgress()
        self._key = key
        self._what = what
        self.artifact: UUID | None = None
        self._shown_s = -_EVERY_S

    @property
    def is_due(self) -> bool:
        """Return whether it was last shown long enough ago."""
        return time.monotonic() - self._shown_s >= _EVERY_S

    def show(self) -> None:
        """Show where the stage is."""
        self._shown_s = time.monotonic()
        state = self.state
        words = (f"{self._what}: {state.phase}", state.left)
        self._put(state.percent, ", ".join(filter(None, words)))

    def finish(self) -> None:
        """Show that the stage is done."""
        self._put(100.0, f"{self._what}: done")

    def _put(self, percent: float, words: str) -> None:
        percent = round(percent, 1)
        if self.artifact is None:
            made = create_progress_artifact(percent, key=self._key, description=words)
            self.artifact = cast(UUID, made)  # a coroutine only where there is an event loop
        else:
            update_progress_artifact(self.artifact, percent, description=words)


def slug(name: str) -> str:
    """Return ``name`` in the characters that an artifact's key may have."""
    return name.lower().replace(".", "-").replace("_", "-")
