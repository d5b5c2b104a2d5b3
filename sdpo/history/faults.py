"""Collect what a look at a run finds: faults, each with what to do, and notes, which are none."""

from dataclasses import dataclass, field

REMAKE = "`sdpo run` with the run's recipe makes it again"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault names ``file`` (below the run, or a path in the cache), what is wrong, what to do."""

    file: str
    what: str
    remedy: str


@dataclass(slots=True)
class Findings:
    """Findings are what :mod:`sdpo.history.verify` found in a run.

    ``notes`` say what could not be checked, and why. ``files`` and ``records`` count what was
    looked at.
    """

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    records: int = 0

    def fault(self, file: str, what: str, remedy: str = REMAKE) -> None:
        """Add a fault, once."""
        found = Fault(file, what, remedy)
        if found not in self.faults:
            self.faults.append(found)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)
