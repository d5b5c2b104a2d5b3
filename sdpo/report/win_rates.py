"""Show how often each model's answers win over those of the model before it and of S."""

from collections.abc import Sequence

from sdpo.report.findings import FEWEST_PAIRS
from sdpo.report.tables import UNKNOWN, Table, count, interval, model_name, number
from sdpo.stats.bootstrap import Bounds
from sdpo.stats.win_rate import WinRate
from sdpo.store.run_folder import RunFolder
from sdpo.store.win_rates import Won, read_verdicts, won_by


def load_win_rates(run: RunFolder) -> list[Won]:
    """Return the win rates of a run's models.

    Raises:
        IntegrityError: verdicts are not those that were written.
    """
    return [won for each in read_verdicts(run) if (won := won_by(each))]


def win_rate_tables(won: Sequence[Won]) -> list[Table]:
    """Return a table for each judge and what it judged; none where nothing was judged."""
    judged: dict[tuple[str, str], list[Won]] = {}
    for each in won:
        judged.setdefault((each.verdicts.outputs.judge, _answers(each)), []).append(each)
    return [
        Table(
            title=f"Win rates by {judge} on answers to {answers}",
            columns=(
                *("Model", "Over", "Prompts", "Won", "Length-controlled", "Ties"),
                *("Orders agree", "Characters", "No verdict"),
            ),
            rows=tuple(_row(each) for each in those),
            text_columns=2,
            note=_NOTE,
        )
        for (judge, answers), those in judged.items()
    ]


_NOTE = (
    "Won: share of prompts on which the judge prefers the model's answer, a tie "
    "as half. Length-controlled: what would be won by answers of equal length (AlpacaEval 2, "
    "arXiv 2404.04475, without its term for the difficulty of prompts). 95% intervals resample "
    f"prompts; fewer than {FEWEST_PAIRS} give none. Orders agree: share of comparisons with "
    "the same verdict whichever answer is shown first; a judge by scores sees no order."
)


def _answers(won: Won) -> str:
    told = won.verdicts.outputs
    return (
        f"{told.prompt_set or 'reserved prompts'}: {told.samples} each, up to "
        f"{told.max_new_tokens} tokens, temperature {told.temperature:g}"
    )


def _row(won: Won) -> tuple[str, ...]:
    found = won.found
    first, second = won.chars
    return (
        model_name(won.verdicts.model),
        model_name(won.verdicts.other),
        count(found.prompts),
        f"{number(found.rate, digits=3)} {_bounds(found, found.bounds)}",
        UNKNOWN
        if found.controlled is None
        else f"{number(found.controlled, digits=3)} {_bounds(found, found.controlled_bounds)}",
        number(found.ties, digits=3),
        number(found.agreement, digits=3) if won.verdicts.outputs.pairwise else UNKNOWN,
        f"{first:.0f} to {second:.0f}",
        count(found.missing),
    )


def _bounds(found: WinRate, given: Bounds) -> str:
    low, high = (None, None) if found.prompts < FEWEST_PAIRS else given
    return interval(low, high, digits=3)
