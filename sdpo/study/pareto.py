"""Draw KL to S against quality: what a trial gains, and how far it goes for it.

As figure 3 of arXiv 2502.01237. The front is drawn through the trials that no other one beats in
both: none of them is as near to S and ranks as many pairs right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sdpo.report.figures import WIDTH, Scale, padded, svg, tick_texts, tone_of, words
from sdpo.report.tables import UNKNOWN, interval, number, percent
from sdpo.stats.kl import Estimate
from sdpo.study.comparison import Comparison

_TOP, _BOTTOM, _LEFT, _RIGHT = 14, 236, 48, WIDTH - 8
_LEGEND_ROW = 16
_FAR_APART = 20


@dataclass(frozen=True, slots=True)
class Point:
    """A trial is ``kl`` nats from S and has ``quality``; a ``series`` of points has one colour."""

    label: str
    series: str
    kl: Estimate
    quality: Estimate


def points_of(found: Comparison) -> list[Point]:
    """Return the points of the trials of which both numbers are known; a series for each value of
    the setting that stands first."""
    return [
        Point(line.arm, line.arm.partition(", ")[0], line.kl, line.accuracy)
        for line in found.arms
        if line.kl is not None and line.kl.mean is not None and line.accuracy.mean is not None
    ]


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats, by KL: less KL and more quality are better."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.kl.mean or 0.0, -(p.quality.mean or 0.0))):
        if not best or (point.quality.mean or 0.0) > (best[-1].quality.mean or 0.0):
            best.append(point)
    return best


def pareto_figure(points: Sequence[Point]) -> Markup:
    """Draw the points with their intervals, the front as a line; nothing for fewer than two."""
    if len(points) < 2:
        return Markup("")
    x = _Across.over([v for p in points for v in _ends(p.kl)])
    y = padded([v for p in points for v in _ends(p.quality)], start=_BOTTOM, end=_TOP)
    series = list(dict.fromkeys(point.series for point in points))
    tones = {name: tone_of(number_) for number_, name in enumerate(series, start=1)}
    path = " ".join(f"{x(p.kl.mean or 0)},{y(p.quality.mean or 0)}" for p in front(points))
    parts = [
        _axes(x, y),
        Markup('<polyline class="curve s0" points="{}"/>').format(path),
        *(_point(point, x, y, tones[point.series]) for point in points),
        words((_LEFT + _RIGHT) / 2, _BOTTOM + 30, x.title, "middle muted"),
        words(_LEFT, 9, "ranking accuracy, %", "muted"),
    ]
    bottom = _BOTTOM + 46
    for row, name in enumerate(series):
        at = bottom + row * _LEGEND_ROW
        parts.append(
            Markup('<circle class="f{}" cx="{}" cy="{}" r="4"/>').format(tones[name], _LEFT, at - 4)
        )
        parts.append(words(_LEFT + 12, at, name, ""))
    return svg(
        parts, height=bottom + len(series) * _LEGEND_ROW, label="KL from S and ranking accuracy"
    )


@dataclass(frozen=True, slots=True)
class _Across:
    """This scale is of KL: logarithmic where values are far apart."""

    scale: Scale
    is_log: bool

    @classmethod
    def over(cls, values: Sequence[float]) -> "_Across":
        """Return the scale over these values."""
        is_log = min(values) > 0 and max(values) / min(values) > _FAR_APART
        inside = [math.log10(value) for value in values] if is_log else values
        return cls(padded(inside, start=_LEFT, end=_RIGHT), is_log)

    def __call__(self, value: float) -> float:
        return self.scale(math.log10(value) if self.is_log else value)

    @property
    def title(self) -> str:
        """Return what is written below it."""
        return "KL from S, nats per completion" + ", log scale" * self.is_log

    def ticks(self) -> list[tuple[float, str]]:
        """Return the values that are marked, each with its text."""
        if not self.is_log:
            found = self.scale.ticks()
            return list(zip(found, tick_texts(found), strict=True))
        powers = range(math.floor(self.scale.low), math.ceil(self.scale.high) + 1)
        values = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        inside = [v for v in values if self.scale.low <= math.log10(v) <= self.scale.high]
        return [(value, f"{value:g}") for value in inside]


def _ends(found: Estimate) -> list[float]:
    return [value for value in (found.mean, found.low, found.high) if value is not None]


def _axes(x: _Across, y: Scale) -> Markup:
    lines = []
    for tick, said in x.ticks():
        lines.append(_grid(x(tick), x(tick), _TOP, _BOTTOM))
        lines.append(words(x(tick), _BOTTOM + 14, said, "middle num muted"))
    shares = tick_texts([100 * tick for tick in y.ticks()])
    for tick, said in zip(y.ticks(), shares, strict=True):
        lines.append(_grid(_LEFT, _RIGHT, y(tick), y(tick)))
        lines.append(words(_LEFT - 6, y(tick) + 4, said, "end num muted"))
    return Markup("").join(lines)


def _grid(x1: float, x2: float, y1: float, y2: float) -> Markup:
    return Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(x1, x2, y1, y2)


def _point(point: Point, x: _Across, y: Scale, colour: int) -> Markup:
    kl, quality = point.kl, point.quality
    across, up = x(kl.mean or 0.0), y(quality.mean or 0.0)
    said = (
        f"{point.label}: KL {number(kl.mean, digits=3)} {_bounds(kl, 1, 3)}, accuracy "
        f"{percent(quality.mean)} {_bounds(quality, 100, 1)}"
    )
    marks = []
    if kl.low is not None and kl.high is not None:
        marks.append(_whisker(colour, x(kl.low), x(kl.high), up, up))
    if quality.low is not None and quality.high is not None:
        marks.append(_whisker(colour, across, across, y(quality.low), y(quality.high)))
    dot = Markup('<circle class="f{}" cx="{}" cy="{}" r="4.5"/>').format(colour, across, up)
    return Markup("<g><title>{}</title>{}{}</g>").format(said, Markup("").join(marks), dot)


def _bounds(found: Estimate, scale: float, digits: int) -> str:
    if found.low is None:
        return UNKNOWN
    return interval(found.low, found.high, digits=digits, scale=scale)


def _whisker(colour: int, x1: float, x2: float, y1: float, y2: float) -> Markup:
    return Markup('<line class="whisker s{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        colour, x1, x2, y1, y2
    )
