"""Write a comparison as a page, made like the report, and as JSON beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sdpo.report import figures
from sdpo.report.figures import Estimate
from sdpo.report.gamma_figures import Figure
from sdpo.report.tables import Table, count, number, percent
from sdpo.report.template import rendered
from sdpo.stats.differences import PairedDifference
from sdpo.stats.kl import Estimate as KlEstimate
from sdpo.study.arms import Arm
from sdpo.study.comparison import Comparison
from sdpo.study.conclusions import conclude
from sdpo.study.folder import StudyFolder
from sdpo.study.measures import MEASURES
from sdpo.study.tables import arms_table, differences_table, suites_table, work_table
from sdpo.system.files import write_json, write_text

TERMS = (
    "Arm: a recipe, of which one thing differs. S is the model that every chain starts from, M_t "
    "the model after step t, D_t the pairs that step t trains on. γ of a pair: the log-probability "
    "that a model gives the chosen answer less that of the rejected one, in nats (natural "
    "logarithm). Reserve: pairs that nothing was trained on, the same for all arms. [a, b]: 95% "
    "interval."
)
"""A reader is told these words before they are used."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page has a title, figures and tables."""

    id: str
    title: str
    figures: Sequence[Figure]
    tables: Sequence[Table]


def write_comparison(study: StudyFolder, found: Comparison, arms: Sequence[Arm]) -> None:
    """Write the page and the JSON of a comparison into the study's folder."""
    tables = [[t for t in group if t.rows] for group in _tables(found)]
    text = rendered(
        "comparison.html.j2",
        name=study.name,
        kind="comparison",
        kicker="Comparison of recipes",
        facts=[
            ("arms", count(len(found.arms))),
            ("reserve", f"{count(found.pairs)} pairs, {count(found.prompts)} prompts"),
            ("seeds", count(found.seeds)),
        ],
        terms=TERMS,
        verdict=conclude(found),
        failed=found.failed,
        sections=[
            Section("arms", "Arms on one reserve", arm_figures(found), tables[0]),
            Section(
                "differences", f"Against {found.arms[0].arm}", difference_figures(found), tables[1]
            ),
            Section("work", "What it took", [], tables[2]),
        ],
        recipes=[(arm.name, f"{arm.what}\n" + "\n".join(arm.overrides)) for arm in arms],
    )
    write_text(study.page, text)
    write_json(study.numbers, found.as_json())


def _tables(found: Comparison) -> list[list[Table]]:
    return [
        [arms_table(found), suites_table(found)],
        [differences_table(found)],
        [work_table(found)],
    ]


def arm_figures(found: Comparison) -> list[Figure]:
    """Return accuracy and mean gamma of every arm, drawn."""
    accuracy = [(line.arm, line.accuracy) for line in found.arms]
    gamma = [(line.arm, line.gamma) for line in found.arms]
    return [
        Figure(
            "Ranking accuracy of every arm",
            _drawn(accuracy, _percent, label="pairs with γ > 0, %", mark=0.5, shares=True),
            "Share of reserved pairs that the last model ranks as their judges did.",
        ),
        Figure(
            "Mean γ of every arm",
            _drawn(gamma, number, label="mean γ, nats", mark=0.0),
            "How much more likely the chosen answer is than the rejected one.",
        ),
    ]


def difference_figures(found: Comparison) -> list[Figure]:
    """Return the differences of every arm from the first, drawn."""
    first = found.arms[0].arm
    caption = "The same pairs under both models. Lines: 95% intervals over pairs."
    of_accuracy, of_gamma = (
        [(c.arm, c.found) for c in found.contrasts if c.measure == each.measure]
        for each in MEASURES
    )
    points = "difference, percentage points"
    return [
        Figure(
            f"Ranking accuracy, less that of {first}",
            _drawn(of_accuracy, _points, label=points, mark=0.0, shares=True, tone=2),
            caption,
        ),
        Figure(
            f"Mean γ, less that of {first}",
            _drawn(of_gamma, _nats, label="difference, nats", mark=0.0, tone=2),
            caption,
        ),
    ]


def _drawn(
    rows: Sequence[tuple[str, KlEstimate | PairedDifference]],
    text: Callable[[float], str],
    *,
    label: str,
    mark: float,
    shares: bool = False,
    tone: int = 1,
) -> Markup:
    """Draw a named estimate a row; the first has the colour number ``tone``."""
    groups = [
        (name, [Estimate(at, "", found.mean, found.low, found.high, text(found.mean))])
        for at, (name, found) in enumerate(rows, start=tone)
        if found.mean is not None
    ]
    return figures.estimates(groups, label=label, mark=mark, shares=shares)


def _percent(value: float) -> str:
    return percent(value)


def _points(value: float) -> str:
    return number(100 * value, digits=1, signed=True)


def _nats(value: float) -> str:
    return number(value, signed=True)
