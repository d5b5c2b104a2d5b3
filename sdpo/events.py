"""What a stage tells the process that started it: one JSON object per line, in a file.

A file outlives both processes and needs no pipe that could fill up or break.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
Listener = Callable[[Event], None]

_PROGRESS_EVERY_S = 0.2


class EventWriter:
    """Appends events to a file; a writer without a path (other ranks) stays silent."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._last_progress_s = 0.0

    def emit(self, event: str, **fields: object) -> None:
        """Write one event at once."""
        if self._path:
            line = {"event": event, "time": time.time(), **fields}
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
        self.emit("progress", phase=phase, done=done, total=total, unit=unit, note=note, size=size)

    def warning(self, message: str) -> None:
        """Write a warning that belongs in front of a person and into the report."""
        self.emit("warning", message=message)


class EventReader:
    """Reads the events that came since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[Event]:
        """New events; a line that is not finished is left for the next look."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)
