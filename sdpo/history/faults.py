"""What a look at a run comes to: faults, each with what to do, and notes that are none."""

from dataclasses import dataclass, field

REMAKE = "`sdpo run` with the run's recipe makes it again"


@dataclass(frozen=True, slots=True)
class Fault:
    """``file`` (below the run, or a path in the cache), what is wrong with it, what to do."""

    file: str
    what: str
    remedy: str


@dataclass(slots=True)
class Findings:
    """What :mod:`sdpo.history.verify` found. ``notes`` say what could not be checked, and why."""

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
