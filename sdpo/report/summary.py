"""Give the report in short, as plain data, to be printed."""

from dataclasses import dataclass
from pathlib import Path

from sdpo.report.evaluations import evaluation_tables, load_evaluations
from sdpo.report.findings import Caveat, Verdict, caveats, verdict
from sdpo.report.gamma_figures import Figure, gamma_figures
from sdpo.report.health import health_sentences, measure_health
from sdpo.report.load import load_run
from sdpo.report.numbers import measure_run
from sdpo.report.tables import Table, reserve_table
from sdpo.report.tables_of_steps import steps_table, training_table
from sdpo.report.win_rates import load_win_rates, win_rate_tables

_ON_A_CARD = 2


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary tells each step's start and end, and each model's accuracy on the reserve.

    ``health``: what the chain kept and lost, in sentences. ``figures``: mean gamma and ranking
    accuracy of every model, with intervals. ``evaluations``: the tables of suites and win
    rates, where models were judged.
    """

    verdict: Verdict
    caveats: tuple[Caveat, ...]
    tables: tuple[Table, ...]
    health: tuple[str, ...]
    figures: tuple[Figure, ...]
    evaluations: tuple[Table, ...] = ()


def summarise(run: Path) -> Summary:
    """Return the findings of the run in folder ``run``, as far as it got.

    Raises:
        UserError: there is no run at ``run``.
        IntegrityError: a record or a probe is damaged.
    """
    data = load_run(run)
    numbers = measure_run(data)
    return Summary(
        verdict=verdict(data, numbers),
        caveats=tuple(caveats(data, numbers)),
        tables=(
            steps_table(data, numbers),
            training_table(data),
            reserve_table(data, numbers),
        ),
        health=health_sentences(measure_health(data)),
        figures=tuple(gamma_figures(numbers)[:_ON_A_CARD]),
        evaluations=(
            *evaluation_tables(load_evaluations(data.folder)),
            *win_rate_tables(load_win_rates(data.folder)),
        ),
    )
