"""Tell from its events how far a stage is: a share of all it has to do, and the time left."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sdpo.events import ProgressEvent

Clock = Callable[[], float]
"""A clock returns seconds since some moment."""

_MEASURED_S = 1.0
"""A rate is told only once it was measured for so many seconds."""


@dataclass(slots=True)
class Pace:
    """A pace is the rate at which something is done, measured from the first look on.

    What was done before that, by an earlier attempt or before anybody looked, took none of the time
    that is measured. A rate takes two looks.
    """

    clock: Clock = time.monotonic
    _first: tuple[float, float] | None = None
    _last: tuple[float, float] = (0.0, 0.0)

    def take(self, done: float) -> None:
        """Take note of how much is done now."""
        self._last = self.clock(), done
        self._first = self._first or self._last

    def left_s(self, total: float) -> float | None:
        """Return seconds until ``total`` is done; None: nothing can be said, or it is done."""
        if self._first is None:
            return None
        passed, done = (now - then for now, then in zip(self._last, self._first, strict=True))
        if passed < _MEASURED_S or done <= 0 or self._last[1] >= total:
            return None
        return passed * (total - self._last[1]) / done


def in_words(seconds: float | None) -> str:
    """Return a time left in words; empty where there is none to tell."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"about {max(seconds, 1):.0f} s left"
    minutes, hours = seconds / 60, seconds / 3600
    return f"about {minutes:.0f} min left" if hours < 2 else f"about {hours:.1f} h left"


@dataclass(slots=True)
class StageProgress:
    """A stage's progress is the share that is done, in percent; it never falls.

    ``work``: the stage's phases in order with their cost. Where a stage does not say, each phase
    that it comes to counts as all of its work.
    """

    work: Mapping[str, float] = field(default_factory=dict)
    clock: Clock = time.monotonic
    phase: str = ""
    percent: float = 0.0
    _pace: Pace = field(init=False)

    def __post_init__(self) -> None:
        self._pace = Pace(self.clock)

    def take(self, event: ProgressEvent) -> None:
        """Take note of a ``progress`` event."""
        self.phase = event.phase
        share = event.done / event.total if event.total else 0.0
        self.percent = max(self.percent, min(100.0, 100 * self._whole(share)))
        self._pace.take(self.percent)

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
    def left_s(self) -> float | None:
        """Return the seconds left; None before anything can be said, and at the end."""
        return self._pace.left_s(100.0)

    @property
    def left(self) -> str:
        """Return the time left in words; empty where there is none to tell."""
        return in_words(self.left_s)
