"""Measure how long the phases of a step take."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timings:
    """Timings are seconds per phase, over all attempts of a step."""

    seconds: dict[str, float] = field(default_factory=dict)
    _running: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Add the time of the block to ``phase``."""
        start = self._running[phase] = time.perf_counter()
        try:
            yield
        finally:
            del self._running[phase]
            self.add({phase: time.perf_counter() - start})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds to their phases, such as those of an earlier attempt."""
        for phase, value in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + value

    def rounded(self) -> dict[str, float]:
        """Return the seconds to the millisecond, those of running phases included."""
        now, total = time.perf_counter(), Timings(dict(self.seconds))
        total.add({phase: now - start for phase, start in self._running.items()})
        return {phase: round(value, 3) for phase, value in total.seconds.items()}
