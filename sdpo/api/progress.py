"""Show a run's progress to a program's user: one line in a terminal, one cell in a notebook.

A program that gives a listener of its own shows nothing of this.
"""

import html
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sdpo.events import Event, Listener, NodeEvent, ProgressEvent, WaitEvent, WarningEvent
from sdpo.system.streams import visible

Show = Callable[[str], None]
"""It puts HTML in the place of what it put there before."""


@contextmanager
def shown(listen: Listener | None, *, name: str) -> Iterator[Listener]:
    """Yield ``listen`` itself, or a listener that shows progress in the notebook or terminal."""
    if listen is not None:
        yield listen
    elif display := notebook_display():
        yield NotebookProgress(display, name=name)
    else:
        with terminal_progress(name) as listener:
            yield listener


def notebook_display() -> Show | None:
    """Return what shows HTML in the notebook that this process computes for; None without one.

    IPython is not loaded: the process of a notebook has loaded it.
    """
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython else None
    if shell is None or "IPKernelApp" not in shell.config:
        return None
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return lambda text: handle.update(HTML(text))


class NotebookProgress:
    """This listener shows where a run is, with its warnings, in one place of a notebook."""

    def __init__(self, show: Show, *, name: str) -> None:
        self._show, self._name = show, name
        self._node, self._warnings = "", list[str]()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        bar = ""
        match event:
            case NodeEvent():
                self._node = event.node
            case ProgressEvent():
                done, total = event.done, max(event.total or 0, 1)
                bar = (
                    f'<progress value="{done}" max="{total}"></progress> '
                    f"{_text(event.phase)}: {done} of {total} {_text(event.unit)} "
                    f"{_text(event.note)}"
                )
            case WaitEvent(event="waiting"):
                bar = _text(event.message)
            case WarningEvent():
                self._warnings.append(f"<div>warning: {_text(event.message)}</div>")
            case _:
                return
        where = f"<div>run {_text(self._name)}: {_text(self._node)}</div>"
        self._show("".join([*self._warnings, where, f"<div>{bar}</div>"]))


@contextmanager
def terminal_progress(name: str) -> Iterator[Listener]:
    """Yield a listener that rewrites one line on stderr; where that is no terminal, it warns
    only."""
    console = Console(stderr=True, emoji=False)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    line, phase = progress.add_task(visible(name), total=None, unit=""), ""

    def listen(event: Event) -> None:
        nonlocal line, phase
        match event:
            case NodeEvent() | ProgressEvent():
                where = event.node if isinstance(event, NodeEvent) else event.phase
                if where != phase:
                    phase = where
                    progress.remove_task(line)
                    line = progress.add_task(visible(f"{name}: {where}"), total=None, unit="")
                if isinstance(event, ProgressEvent):
                    unit = visible(event.unit)
                    progress.update(line, completed=event.done, total=event.total, unit=unit)
            case WaitEvent(event="waiting"):
                message = escape(visible(event.message))
                console.print(f"[yellow]{message}", highlight=False, soft_wrap=True)
            case WarningEvent():
                message = escape(visible(event.message))
                console.print(f"[yellow]warning:[/] {message}", highlight=False, soft_wrap=True)
            case _:
                pass

    with progress:
        yield listen


def _text(value: str) -> str:
    return html.escape(visible(value))
