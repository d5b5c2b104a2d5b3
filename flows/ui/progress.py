"""How far a stage is, from its events: a share of all it has to do, and the time left."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sdpo.events import ProgressEvent

Clock = Callable[[], float]


@dataclass(slots=True)
class StageProgress:
    """Share of a stage that is done, in percent; it never falls.

    ``work``: the stage's phases in order with their cost. Where a stage does not say, each phase
    that it comes to is the whole of it, as far as can be told.
    """

    work: Mapping[str, float] = field(default_factory=dict)
    clock: Clock = time.monotonic
    phase: str = ""
    percent: float = 0.0
    _started_s: float | None = None

    def take(self, event: ProgressEvent) -> None:
        """Heed a ``progress`` event."""
        if self._started_s is None:
            self._started_s = self.clock()
        self.phase = event.phase
        share = event.done / event.total if event.total else 0.0
        self.percent = max(self.percent, min(100.0, 100 * self._whole(share)))

    def _whole(self, share: float) -> float:
        total = sum(self.work.values())
        if not total:
            return share
        if self.phase not in self.work:
            return self.percent / 100
        names = list(self.work)
        before = sum(self.work[name] for name in names[: names.index(self.phase)])
        return (before + share * self.work[self.phase]) / total

    @property
    def left(self) -> str:
        """The time left in words; empty before anything can be said."""
        if self._started_s is None or not 0 < self.percent < 100:
            return ""
        passed = self.clock() - self._started_s
        seconds = passed * (100 - self.percent) / self.percent
        if seconds < 60:
            return f"about {seconds:.0f} s left"
        minutes, hours = seconds / 60, seconds / 3600
        return f"about {minutes:.0f} min left" if hours < 2 else f"about {hours:.1f} h left"
