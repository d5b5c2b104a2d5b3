"""Make the tables of a comparison, as the report's: arms as rows."""

from collections.abc import Sequence

from sdpo.report.tables import UNKNOWN, Table, count, duration, interval, number, percent
from sdpo.stats.kl import Estimate
from sdpo.study.comparison import ArmLine, Comparison, Contrast
from sdpo.study.conclusions import listed

MOST_SUITES = 3
"""So many suites have a column of their own beside an arm."""


def comparison_tables(found: Comparison) -> list[Table]:
    """Return the tables of a comparison, first the paper's Table 2 for this data."""
    tables = [arms_table(found), differences_table(found), suites_table(found), work_table(found)]
    return [table for table in tables if table.rows]


def arms_table(found: Comparison) -> Table:
    """Show what every arm came to."""
    suites, judges = _suites_shown(found), _judges(found)
    return Table(
        title="Arms",
        columns=(
            "Arm",
            "Partition",
            "Pairs per step",
            "Ranking accuracy",
            "γ rose, from S",
            "Mean γ",
            *suites,
            *(_win_rate_column(judge, judges) for judge in judges),
            "Length",
            "KL from S",
            "Training",
        ),
        rows=tuple(_arm(line, suites, judges) for line in found.arms),
        text_columns=3,
        note=_note(found, judges),
    )


def _arm(line: ArmLine, suites: Sequence[str], judges: Sequence[str]) -> tuple[str, ...]:
    scores = {score.name: score.value for score in reversed(line.suites)}
    return (
        line.arm,
        line.strategy or UNKNOWN,
        " + ".join(map(count, line.pairs)),
        _share(line.accuracy),
        _share(line.rose),
        _estimate(line.gamma),
        *(number(scores.get(name), digits=4) for name in suites),
        *(_share(line.win_rates[j]) if j in line.win_rates else UNKNOWN for j in judges),
        number(line.characters, digits=0),
        _estimate(line.kl, digits=3),
        duration(line.seconds),
    )


def _suites_shown(found: Comparison) -> list[str]:
    """Return the names of the first suites, which have a column here; all have a table."""
    names = dict.fromkeys(score.name for line in found.arms for score in line.suites)
    return list(names)[:MOST_SUITES]


def _judges(found: Comparison) -> list[str]:
    return list(dict.fromkeys(title for line in found.arms for title in line.win_rates))


def _win_rate_column(judge: str, judges: Sequence[str]) -> str:
    return "Win rate over S" if len(judges) == 1 else judge[0].upper() + judge[1:]


def _note(found: Comparison, judges: Sequence[str]) -> str:
    won = f"Win rates: share of answers to reserved prompts, {listed(judges)}. " if judges else ""
    suites = "Suites: by lm-evaluation-harness. " if any(a.suites for a in found.arms) else ""
    return (
        f"Table 2 of arXiv 2403.19270 for this data, on {count(found.pairs)} reserved pairs "
        f"of {count(found.prompts)} prompts that no arm was trained on; [a, b]: 95% interval over "
        "pairs, prompts resampled. Ranking accuracy: share of pairs with γ > 0. γ and KL in nats; "
        f"KL of the last model per completion (probe.kl_prompts). {suites}{won}Length: characters "
        "of greedy completions (probe.completions). Training: time of all steps, of all seeds, "
        "those that are shared with another arm included."
    )


def differences_table(found: Comparison) -> Table:
    """Show how every arm differs from the first, pair by pair."""
    first, several = found.arms[0].arm, found.seeds > 1
    seeds = ("Over seeds",) if several else ()
    return Table(
        title=f"Differences from {first}",
        columns=("Arm", "In", "Difference", *seeds, "Corrected p", "Could be shown", "Shown"),
        rows=tuple(_contrast(contrast, several) for contrast in found.contrasts),
        text_columns=2,
        note="Paired, pair by pair, on suites document by document, of answers prompt by prompt"
        + (", of means over seeds" if several else "")
        + "; [a, b]: 95% interval of Student's t, over prompts, on suites over documents. "
        + ("Over seeds: Student's t of the differences of single seeds. " if several else "")
        + f"p: two-sided, corrected by Holm for {found.tests} differences. Could be shown: the "
        "smallest difference that these would have shown in 80% of all tries, "
        + ("varying over pairs and over seeds as they do." if several else "varying over pairs."),
    )


def _contrast(contrast: Contrast, several: bool) -> tuple[str, ...]:
    return (contrast.arm, contrast.title, *_cells(contrast, several), _what(contrast))


def _cells(contrast: Contrast, several: bool) -> tuple[str, ...]:
    paired, over = contrast.found, contrast.found.over_seeds
    known = over is not None and over.seeds > 1
    seeds = contrast.interval(over.low, over.high) if over is not None and known else UNKNOWN
    mean = contrast.signed(paired.mean)
    bounds = contrast.interval(paired.low, paired.high)
    none = f"(no {contrast.items.removesuffix('s')} differs)"
    return (
        f"{mean} {bounds if paired.varies else none}",
        *([seeds] if several else []),
        _p(contrast.corrected),
        UNKNOWN if contrast.smallest is None else contrast.size(contrast.smallest),
    )


def _p(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _what(contrast: Contrast) -> str:
    if not contrast.is_shown:
        return "no"
    return "higher" if contrast.found.mean > 0 else "lower"


def suites_table(found: Comparison) -> Table:
    """Show what every arm scored on suites."""
    rows = tuple(
        (line.arm, score.name, score.metric, score.asked, number(score.value, digits=4))
        for line in found.arms
        for score in line.suites
    )
    return Table(
        title="Suites",
        columns=("Arm", "Task", "Metric", "Asked", "Score"),
        rows=rows,
        text_columns=4,
        note="By lm-evaluation-harness, of the last model; means over seeds. Differences of "
        "what is a mean over documents are among those from the first arm.",
    )


def work_table(found: Comparison) -> Table:
    """Show what had to be computed for every arm, and what it shares."""
    return Table(
        title="What was computed",
        columns=(
            "Arm",
            "Runs",
            "Steps trained",
            "Steps shared",
            "References scored",
            "Rows scored",
        ),
        rows=tuple(_work(line) for line in found.arms),
        text_columns=2,
        note="What is shared counts with the one that ran first. References scored: a step's "
        "reference on its D_t, where log-probs had to be computed. Rows scored: pairs whose "
        "log-probs under some model had to be computed, measurements included; all others came "
        "from the cache.",
    )


def _work(line: ArmLine) -> tuple[str, ...]:
    numbers = (line.trained, line.shared, line.scorings, line.rows_scored)
    return (line.arm, ", ".join(line.trials), *map(count, numbers))


def _share(found: Estimate) -> str:
    return f"{percent(found.mean)} {interval(found.low, found.high, digits=1, scale=100)}"


def _estimate(found: Estimate | None, *, digits: int = 2) -> str:
    if found is None:
        return UNKNOWN
    if found.low is None:
        return number(found.mean, digits=digits)
    return f"{number(found.mean, digits=digits)} {interval(found.low, found.high, digits=digits)}"
