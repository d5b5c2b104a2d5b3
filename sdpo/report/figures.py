"""Draw the report's figures as inline SVG.

They are drawn directly rather than by a plotting library: the marks take their colours from the
page's style sheet (so dark mode and print work), text stays text, every mark says its value when
pointed at, the bytes are the same for the same run, and nothing heavy is imported.

All figures are ``WIDTH`` units wide, small enough to be read on a phone.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

WIDTH = 420
MAX_POINTS = 160
"""A curve has at most so many points; longer ones are averaged over equal stretches."""

_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate is a model's value with its interval, None where there is none."""

    model: int
    label: str
    value: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve is a metric of one step over optimizer steps and, where measured, on the reserve."""

    step: int
    steps: Sequence[float]
    values: Sequence[float]
    eval_steps: Sequence[float] = ()
    eval_values: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """A scale maps data to drawing units."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where ``value`` is drawn."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Return round values inside the scale, 1, 2 or 5 times a power of ten apart."""
        rough = (self.high - self.low) / wanted
        power = 10 ** math.floor(math.log10(rough))
        gap = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
        first = math.ceil(self.low / gap - 1e-9)
        return [i * gap for i in range(first, math.floor(self.high / gap + 1e-9) + 1)]


def estimates(
    groups: Sequence[tuple[str, Sequence[Estimate]]],
    *,
    label: str,
    mark: float,
    shares: bool = False,
) -> Markup:
    """Draw a row per model in every group: its value as a dot, its interval as a line.

    ``mark`` is a value worth a line of its own; ``shares`` are drawn in percent.
    """
    rows = [estimate for _, members in groups for estimate in members]
    if not rows:
        return Markup("")
    ends = [x for e in rows for x in (e.value, e.low, e.high) if x is not None]
    scale = padded([*ends, mark], start=34, end=WIDTH - 78)
    parts: list[Markup] = []
    y = 14
    for name, members in groups:
        parts.append(words(0, y, _cut(name, 56), "group"))
        for e in members:
            y += 17
            parts.append(words(26, y + 4, e.label, f"end f{tone_of(e.model)}"))
            parts.append(_estimate(e, scale, y))
            parts.append(words(WIDTH - 2, y + 4, e.text, "end num"))
        y += 27
    bottom = y - 14
    axis = _x_axis(scale, top=4, bottom=bottom, mark=mark, shares=shares)
    title = words((34 + WIDTH - 78) / 2, bottom + 30, label, "middle muted")
    return svg([axis, *parts, title], height=bottom + 36, label=label)


def histograms(
    rows: Sequence[tuple[int, str, NDArray[np.float64]]], *, label: str, bins: int = 44
) -> Markup:
    """Draw a histogram per model over the same bins, its mean marked; outer bins hold outliers."""
    pooled = np.concatenate([gamma for _, _, gamma in rows])
    low, high = np.percentile(pooled, [0.5, 99.5])
    scale = padded([float(low), float(high), 0.0], start=34, end=WIDTH - 16)
    edges = np.linspace(scale.low, scale.high, bins + 1)
    counts = [np.histogram(np.clip(g, edges[0], edges[-1]), edges)[0] / len(g) for _, _, g in rows]
    tallest = max(float(c.max()) for c in counts)
    height, parts = 46, []
    for index, ((model, name, gamma), shares) in enumerate(zip(rows, counts, strict=True)):
        base = 12 + (index + 1) * height
        tops = [base - float(share) / tallest * (height - 8) for share in shares]
        path = f"M{scale(edges[0])} {base}" + "".join(
            f"V{top:.1f}H{scale(edge)}" for top, edge in zip(tops, edges[1:], strict=True)
        )
        mean = float(gamma.mean())
        parts += [
            Markup('<path class="fill f{}" d="{}V{}Z"/>').format(tone_of(model), path, base),
            Markup('<line class="rule" x1="34" x2="{}" y1="{}" y2="{}"/>').format(
                WIDTH - 16, base, base
            ),
            _mean_line(f"{name}: mean {mean:.2f} nats", model, scale(mean), base, height - 10),
            words(26, base - 4, name, f"end f{tone_of(model)}"),
        ]
    bottom = 12 + len(rows) * height
    axis = _x_axis(scale, top=8, bottom=bottom, mark=0.0)
    title = words((18 + WIDTH) / 2, bottom + 30, label, "middle muted")
    return svg([axis, *parts, title], height=bottom + 36, label=label)


def curves(
    series: Sequence[Curve], *, label: str, mark: float | None = None, mark_label: str = ""
) -> Markup:
    """Draw the steps' curves one after the other along the chain; circles are the reserve."""
    values = [v for c in series for v in (*c.values, *c.eval_values)]
    y = padded(values if mark is None else [*values, mark], start=176, end=22)
    total = sum(max([*c.steps, *c.eval_steps]) for c in series)
    x = Scale(0, max(total, 1), 44, WIDTH - 6)
    parts = [_y_axis(y)]
    if mark is not None:
        parts.append(
            Markup('<line class="zero" x1="44" x2="{}" y1="{}" y2="{}"/>').format(
                WIDTH - 6, y(mark), y(mark)
            )
        )
        parts.append(words(WIDTH - 8, y(mark) - 4, mark_label, "end muted"))
    offset = 0.0
    for curve in series:
        length = max([*curve.steps, *curve.eval_steps])
        if offset:
            parts.append(
                Markup('<line class="rule" x1="{0}" x2="{0}" y1="10" y2="176"/>').format(x(offset))
            )
        middle = x(offset + length / 2)
        parts.append(words(middle, 12, f"step {curve.step}", f"middle f{tone_of(curve.step)}"))
        parts.append(_line(curve, x, y, offset))
        offset += length
    for tick in x.ticks():
        if tick == int(tick):
            parts.append(words(x(tick), 191, f"{int(tick)}", "middle num muted"))
    parts.append(words((44 + WIDTH) / 2, 207, "optimizer steps along the chain", "middle muted"))
    return svg(parts, height=213, label=label)


def _mean_line(title: str, model: int, x: float, base: float, height: float) -> Markup:
    return Markup(
        '<line class="mean s{0}" x1="{1}" x2="{1}" y1="{2}" y2="{3}"><title>{4}</title></line>'
    ).format(tone_of(model), x, base - height, base, title)


def _line(curve: Curve, x: Scale, y: Scale, offset: float) -> Markup:
    tone = tone_of(curve.step)
    points = zip(_averaged(curve.steps), _averaged(curve.values), strict=True)
    path = " ".join(f"{x(offset + step)},{y(value)}" for step, value in points)
    dots = [
        Markup(
            '<circle class="open s{}" cx="{}" cy="{}" r="3.4"><title>{}</title></circle>'
        ).format(tone, x(offset + step), y(value), f"reserve after {step:g} steps: {value:.4f}")
        for step, value in zip(curve.eval_steps, curve.eval_values, strict=True)
    ]
    return Markup('<polyline class="curve s{}" points="{}"/>').format(tone, path) + Markup("").join(
        dots
    )


def _averaged(values: Sequence[float]) -> list[float]:
    """Return means over at most ``MAX_POINTS`` equal stretches."""
    stretches = np.array_split(np.asarray(values, dtype=np.float64), min(len(values), MAX_POINTS))
    return [float(stretch.mean()) for stretch in stretches] if len(values) else []


def _estimate(e: Estimate, scale: Scale, y: float) -> Markup:
    tone, whisker = tone_of(e.model), Markup("")
    if e.low is not None and e.high is not None:
        whisker = Markup('<line class="whisker s{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            tone, scale(e.low), scale(e.high), y, y
        )
    dot = Markup('<circle class="f{}" cx="{}" cy="{}" r="4"/>').format(tone, scale(e.value), y)
    return Markup("<g><title>{}</title>{}{}</g>").format(f"{e.label}: {e.text}", whisker, dot)


def _x_axis(
    scale: Scale, *, top: float, bottom: float, mark: float, shares: bool = False
) -> Markup:
    ticks = scale.ticks()
    parts = [
        Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            "grid", scale(tick), scale(tick), top, bottom
        )
        for tick in ticks
    ]
    parts.append(
        Markup('<line class="zero" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(
            scale(mark), top, bottom
        )
    )
    texts = tick_texts([100 * tick for tick in ticks] if shares else ticks)
    parts += [
        words(scale(tick), bottom + 14, text, "middle num muted")
        for tick, text in zip(ticks, texts, strict=True)
    ]
    return Markup("").join(parts)


def _y_axis(scale: Scale) -> Markup:
    ticks = scale.ticks(4)
    return Markup("").join(
        Markup('<line class="grid" x1="44" x2="{}" y1="{}" y2="{}"/>').format(
            WIDTH - 6, scale(tick), scale(tick)
        )
        + words(38, scale(tick) + 4, text, "end num muted")
        for tick, text in zip(ticks, tick_texts(ticks), strict=True)
    )


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Write all ticks with the digits that tell neighbours apart."""
    gap = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(gap) + 1e-9))
    return [f"{tick + 0.0:.{digits}f}".replace("-", "−") for tick in ticks]


def padded(values: Iterable[float], *, start: float, end: float) -> Scale:
    """Return a scale over the values with 5% to spare; of width 1 where they are all the same."""
    inside = list(values)
    low, high = min(inside), max(inside)
    spare = 0.05 * (high - low) or 0.5
    return Scale(low - spare, high + spare, start, end)


def tone_of(model: int) -> int:
    """Return the colour of a model: S is grey, later models run through six tones."""
    return 1 + (model - 1) % 6 if model else 0


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def words(x: float, y: float, text: str, css: str) -> Markup:
    """Write a label in which M_1 and D_1 get real subscripts."""
    lowered = re.sub(r"(?<=\b[MD])_(\d+)\b", lambda m: m[1].translate(_SUBSCRIPTS), text)
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(css, round(x, 1), y, lowered)


def svg(parts: Sequence[Markup], *, height: float, label: str) -> Markup:
    """Return a figure of these parts, ``WIDTH`` units wide; ``label`` says what it shows."""
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, round(height), label, Markup("").join(parts)
    )
