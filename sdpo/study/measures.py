"""Name what arms are compared in, and write its numbers as a person reads them."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from sdpo.report.tables import interval, number
from sdpo.stats.differences import PairedDifference
from sdpo.study.scores import ItemScores

Unit = Literal["points", "nats", "score"]
"""Shares are told in percentage points, gamma in nats, and a suite has a scale of its own."""
_SCALES: dict[Unit, float] = {"points": 100.0, "nats": 1.0, "score": 1.0}
_DIGITS: dict[Unit, int] = {"points": 1, "nats": 2, "score": 4}
_VERBS = {
    "ranking_accuracy": ("ranks {} pairs right than", "more", "fewer"),
    "gamma": ("prefers the chosen answers {} than", "more", "less"),
    "win_rate": ("wins {} over S than", "more often", "less often"),
}


class Measure(BaseModel):
    """A measure has a name for programs and a ``title``; ``items`` are what it is a mean over."""

    model_config = ConfigDict(frozen=True)

    measure: str
    title: str
    unit: Unit
    items: str

    def verb(self, change: float) -> str:
        """Return what an arm does that has more of it than the first one, or less."""
        what = f"has {{}} on {self.title} than"
        words, more, less = _VERBS.get(self.measure.partition(":")[0], (what, "more", "less"))
        return words.format(less if change < 0 else more)

    def size(self, value: float | None) -> str:
        """Write the size of a difference with its unit."""
        return f"{self._number(value)}{self._suffix}"

    def shown(self, found: PairedDifference) -> str:
        """Write a difference with its intervals, each named where there are two."""
        text = f"{self.signed(found.mean)} {self.interval(found.low, found.high)}"
        over = found.over_seeds
        if over is None or over.seeds < 2:
            return text
        seeds = self.interval(over.low, over.high)
        return f"{text} over {self.items}, {seeds} over {over.seeds} seeds"

    def signed(self, value: float) -> str:
        """Write a difference with its sign and unit."""
        return f"{self._number(value, signed=True)}{self._suffix}"

    def interval(self, low: float | None, high: float | None) -> str:
        """Write an interval."""
        return interval(low, high, digits=_DIGITS[self.unit], scale=_SCALES[self.unit])

    def _number(self, value: float | None, *, signed: bool = False) -> str:
        scaled = None if value is None else _SCALES[self.unit] * value
        return number(scaled, digits=_DIGITS[self.unit], signed=signed)

    @property
    def _suffix(self) -> str:
        return "" if self.unit == "score" else f" {self.unit}"


ACCURACY = Measure(
    measure="ranking_accuracy", title="ranking accuracy", unit="points", items="pairs"
)
GAMMA = Measure(measure="gamma", title="mean γ", unit="nats", items="pairs")
MEASURES = (ACCURACY, GAMMA)
"""What is tested of every arm: the share of pairs with gamma > 0, and mean gamma in nats."""


def measure_of(scores: ItemScores) -> Measure:
    """Return the measure that scores by item are of."""
    if scores.kind == "win_rate":
        return Measure(measure=scores.key, title=scores.title, unit="points", items="answers")
    return Measure(measure=scores.key, title=scores.title, unit="score", items="documents")
