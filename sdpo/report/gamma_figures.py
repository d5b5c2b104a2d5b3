"""Draw gamma and the accuracies of every model, for the page and for a card beside it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup

from sdpo.report import figures
from sdpo.report.figures import Estimate
from sdpo.report.numbers import Numbers
from sdpo.report.tables import model_name, number, percent, probe_name
from sdpo.stats.gamma import RESERVE
from sdpo.stats.gamma_rows import Difference, GammaRow

_MARGIN = 10
"""A figure that stands alone has so much free space around it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure is a drawing with its title and a caption."""

    title: str
    drawing: Markup
    caption: str


def gamma_figures(numbers: Numbers) -> list[Figure]:
    """Return what of gamma was drawn; figures in which there would be nothing are left out."""
    if not numbers.entries:
        return []
    reserves = [probe for probe in numbers.probes if probe.startswith(RESERVE)]
    probes = [probe for probe in numbers.probes if probe not in reserves] + reserves
    gamma = [(probe_name(probe), _of_probe(numbers, probe)) for probe in probes]
    accuracy = [(probe_name(probe), _of_probe(numbers, probe)) for probe in reserves]
    if len(reserves) > 1:
        accuracy.insert(0, ("reserve of all sources", numbers.reserve))
    drawn = [
        Figure(
            "Mean γ of every model on every probe",
            _estimates(gamma, MEAN, number, label="mean γ, nats"),
            "How much more likely the chosen answer is than the rejected one. The models before "
            "M_t have not trained on D_t. Lines: 95% intervals, prompts resampled.",
        ),
        Figure(
            "Ranking accuracy on the reserve",
            _estimates(accuracy, ACCURACY, percent, label="pairs with γ > 0, %", mark=0.5),
            "Share of pairs that a model ranks as their judges did. No model has trained on these "
            "prompts.",
        ),
        Figure(
            "Change of mean γ from S",
            _estimates(gamma, CHANGE, _nats, label="change of mean γ, nats"),
            "The same pairs under both models, so smaller changes show than between the means.",
        ),
        Figure(
            "Change of ranking accuracy from S",
            _estimates(accuracy, ACCURACY_CHANGE, _points, label="change, percentage points"),
            "The same pairs under both models.",
        ),
    ]
    return [figure for figure in drawn if figure.drawing]


Groups = list[tuple[str, dict[int, GammaRow]]]
"""Groups are named probes, each with the row of every model."""

MEAN = ("mean", "mean_low", "mean_high")
ACCURACY = ("ranking_accuracy", "ranking_accuracy_low", "ranking_accuracy_high")
CHANGE = ("mean", "low", "high")
ACCURACY_CHANGE = tuple(f"ranking_accuracy_change{end}" for end in ("", "_low", "_high"))


def _of_probe(numbers: Numbers, probe: str) -> dict[int, GammaRow]:
    return {model: entry for (model, of), entry in numbers.entries.items() if of == probe}


def _estimates(
    groups: Groups,
    keys: tuple[str, ...],
    text: Callable[[float], str],
    *,
    label: str,
    mark: float = 0.0,
) -> Markup:
    """Draw the models' own values, or their differences to S (from M_1 on)."""
    change = keys in (CHANGE, ACCURACY_CHANGE)
    rows = []
    for title, entries in groups:
        drawn = []
        for model, entry in entries.items():
            values: GammaRow | Difference | None = entry.vs_S if change else entry
            if values:
                value, low, high = (getattr(values, key) for key in keys)
                drawn.append(Estimate(model, model_name(model), value, low, high, text(value)))
        rows.append((title, drawn))
    shown = [(title, drawn) for title, drawn in rows if drawn]
    shares = keys in (ACCURACY, ACCURACY_CHANGE)
    return figures.estimates(shown, label=label, mark=mark, shares=shares)


def _nats(value: float) -> str:
    return number(value, signed=True)


def _points(value: float) -> str:
    return number(100 * value, digits=1, signed=True)


def alone(figure: Figure) -> str:
    """Return a figure as an SVG file of its own, on a light ground, whatever stands around it."""
    style = files("sdpo.report").joinpath("report.css").read_text(encoding="utf-8")
    light = re.search(r":root \{(.*?)\}", style, re.DOTALL)
    assert light
    rules = [line for line in style.splitlines() if line.startswith(("svg ", ".f0 ", ".s0 "))]
    size = re.search(r'viewBox="0 0 (\d+) (\d+)"', figure.drawing)
    assert size
    style = (
        f":root{{{light[1].replace('light dark', 'light')}}}"
        f"svg{{font:11.5px system-ui,sans-serif;fill:var(--ink)}}{''.join(rules)}"
    )
    width, height = int(size[1]) + 2 * _MARGIN, int(size[2]) + 2 * _MARGIN
    start, _, rest = str(figure.drawing).partition(">")
    start = start.removeprefix("<svg ").replace(
        size[0], f'viewBox="{-_MARGIN} {-_MARGIN} {width} {height}"'
    )
    file = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" {start}>'
    ground = f'<rect x="{-_MARGIN}" y="{-_MARGIN}" width="100%" height="100%" fill="var(--page)"/>'
    return f"{file}<style>{style}</style>{ground}{rest}"
