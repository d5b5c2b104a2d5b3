"""Define what a part of the GPU command is told, and what it finds.

Findings are written as they come, one JSON object a line, so that a part which is ended for time
leaves what it has found.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Numbers = dict[str, float | int | str | bool | list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings say where parts run, and how large they are.

    ``tiny`` shapes are for a CPU, to see that the command works.
    """

    device: Literal["cpu", "cuda"]
    tiny: bool
    folder: str
    threads: int
    seed: int = 42

    @property
    def path(self) -> Path:
        """Return the folder of the whole command, which all parts share."""
        return Path(self.folder)

    def to_json(self) -> str:
        """Return the settings as JSON, for the command line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finding is a line of the table: what was looked at, what was seen, whether it is right.

    ``ok`` is None where there is nothing to pass: a speed, a number of bytes.
    """

    what: str
    seen: str
    ok: bool | None = None
    numbers: Numbers = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Return PASS or FAIL, or nothing where there is nothing to pass."""
        return "" if self.ok is None else "PASS" if self.ok else "FAIL"


def write_finding(path: Path, finding: Finding) -> None:
    """Append ``finding`` to the file at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(finding)) + "\n")


def read_findings(path: Path) -> Iterator[Finding]:
    """Yield the finding of each whole line of the file; none where it does not exist."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield Finding(**json.loads(line))
