"""Show a run at a terminal: one line per node, a bar with the time left."""

import time
from collections.abc import Collection, Iterable, Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from sdpo.events import (
    Event,
    InterruptedEvent,
    NodeEvent,
    NoteEvent,
    ProgressEvent,
    PublishedEvent,
    StateEvent,
    WaitEvent,
    WarningEvent,
)
from sdpo.processes.pace import Pace, in_words
from sdpo.store.reuse import NOT_DONE

Cell = str | int | float | None
Row = Mapping[str, Cell]
"""A row is a line of a table: its cells by the titles of their columns."""


def reason_of(event: NodeEvent) -> str:
    """Return why a node is done again; empty where it was never done, which needs no reason."""
    return "" if event.reason == NOT_DONE else event.reason


_PLAIN_EVERY_S = 5.0
"""Where the output is not a terminal, so many seconds are between two lines of progress."""


class RunConsole:
    """A run's console shows its events. Use it as a context manager around the run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._phase = ""
        self._bar: TaskID | None = None
        self._pace = Pace()
        self._printed_s = time.monotonic()

    def __enter__(self) -> "RunConsole":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case NodeEvent():
                self._node(event)
            case ProgressEvent():
                self._show_progress(event)
            case InterruptedEvent():
                self._console.print(escape(interruption(event)), highlight=False)
            case StateEvent():
                self._console.print(f"  {escape(where_it_stands(event))}", highlight=False)
            case NoteEvent():
                self._console.print(f"  {escape(event.message)}", highlight=False)
            case WarningEvent():
                message = escape(event.message)
                self._console.print(f"[yellow]warning:[/] {message}", highlight=False)
            case WaitEvent(event="waiting"):
                self._console.print(f"[yellow]{escape(event.message)}", highlight=False)
            case PublishedEvent():
                self._console.print(
                    f"  published {event.name} [dim]{event.model[:16]}", highlight=False
                )
            case _:
                pass

    def _node(self, event: NodeEvent) -> None:
        if event.status == "reuse":
            how = escape(event.reason) or "is done"
            self._console.print(f"[green]✓[/] {event.node} [dim]{how}", highlight=False)
        else:
            why = reason_of(event)
            reason = f" [dim]({escape(why)})" if why else ""
            self._console.print(f"[cyan]▶[/] {event.node}{reason}", highlight=False)

    def _show_progress(self, event: ProgressEvent) -> None:
        if event.phase != self._phase:
            self._new_phase(event)
        done, total = event.done, event.total
        self._pace.take(done)
        if self._bar is not None:
            self._progress.update(self._bar, completed=done, total=total, note=event.note)
        elif time.monotonic() - self._printed_s > _PLAIN_EVERY_S:
            self._printed_s = time.monotonic()
            self._console.print(escape(self._plain(event)), highlight=False)
        if done == total and self._bar is not None:
            self._progress.remove_task(self._bar)
            self._phase, self._bar = "", None

    def _new_phase(self, event: ProgressEvent) -> None:
        if self._bar is not None:
            self._progress.remove_task(self._bar)
        self._phase, self._bar = event.phase, None
        self._pace = Pace()
        if self._console.is_terminal:
            self._bar = self._progress.add_task(
                event.phase, total=event.total, unit=event.unit, note=""
            )

    def _plain(self, event: ProgressEvent) -> str:
        done, total = event.done, event.total
        line = f"  {event.phase}: {done}/{total or '?'} {event.unit}"
        if left := in_words(self._pace.left_s(total) if total else None):
            line += f", {left}"
        return f"{line} {event.note}".rstrip()


def interruption(event: InterruptedEvent) -> str:
    """Return an ``interrupted`` event in words."""
    done = [f"step {number}" for number in event.complete]
    what = f"{' and '.join(done)} {'are' if len(done) > 1 else 'is'}" if done else "no step is"
    return f"run {event.run} stopped before its end, {what} complete: going on"


def where_it_stands(event: StateEvent) -> str:
    """Return a ``resume`` or ``checkpoint`` event in words."""
    verb = "goes on after" if event.event == "resume" else "saved at"
    return f"{event.step} {verb} optimizer step {event.optimizer_step} of {event.total}"


def table(rows: Iterable[Row], *, title: str = "", numeric: Collection[str] = ()) -> Table:
    """Return a table of rows with the same keys.

    Columns of numbers, and those in ``numeric``, are set to the right.
    """
    rows = list(rows)
    made = Table(
        title=escape(title) or None,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in rows[0] if rows else []:
        right = name in numeric or all(isinstance(row[name], int | float | None) for row in rows)
        made.add_column(escape(str(name)), justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*("" if value is None else escape(str(value)) for value in row.values()))
    return made
