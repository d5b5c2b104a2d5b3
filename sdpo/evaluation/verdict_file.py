"""Keep what an endpoint said, every word of it, as it says it: a file that only grows.

A line has the key of what was asked, the verdict (None: the answer held none), the answer's text,
the tokens that it took and for whom. A line that was cut short by a kill is left out.
"""

import json
import threading
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sdpo.system.files import write_text

VERDICTS = "verdicts.jsonl"


class Said(BaseModel):
    """An endpoint said this when it was asked once.

    ``verdict``: A, B, tie or None; ``refused``: the model or its server would not answer;
    ``spent_for``: under whose ceiling the ``tokens`` were spent. ``model`` is what the server calls
    itself, ``at`` the time in UTC.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    verdict: str | None
    text: str
    refused: bool = False
    tokens: int
    spent_for: str
    model: str = ""
    at: str = ""


class VerdictFile:
    """The verdicts in ``folder``, which several threads of one process may add to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / VERDICTS
        self._lock = threading.Lock()
        self._said: dict[str, list[Said]] = {}
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        for line in lines:
            try:
                self._take(Said.model_validate(json.loads(line)))
            except (ValueError, ValidationError):
                continue
        if lines:  # what comes next is not to be added to a line that was cut short
            every = [said for found in self._said.values() for said in found]
            write_text(self.path, "".join(f"{said.model_dump_json()}\n" for said in every))

    def _take(self, said: Said) -> None:
        self._said.setdefault(said.key, []).append(said)

    def add(self, said: Said) -> None:
        """Keep it."""
        with self._lock:
            self._take(said)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{said.model_dump_json()}\n")

    def of(self, key: str) -> list[Said]:
        """Return everything that was said when this was asked, in order."""
        return self._said.get(key, [])

    def spent(self, label: str) -> int:
        """Return the tokens that were spent for ``label``."""
        with self._lock:
            every = [said for found in self._said.values() for said in found]
        return sum(said.tokens for said in every if said.spent_for == label)
