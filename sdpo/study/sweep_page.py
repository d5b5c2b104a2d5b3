"""Say what a sweep found: its tables, its sentences, its page, made like the report."""

from pathlib import Path

from sdpo.report.findings import Verdict
from sdpo.report.gamma_figures import Figure
from sdpo.report.tables import UNKNOWN, Table, count, interval, number, percent
from sdpo.report.template import rendered
from sdpo.stats.kl import Estimate
from sdpo.study.arms import counted
from sdpo.study.conclusions import conclude
from sdpo.study.folder import StudyFolder
from sdpo.study.page import TERMS, Section, arm_figures
from sdpo.study.pareto import front, pareto_figure, points_of
from sdpo.study.selection import Scored, Swept
from sdpo.study.tables import differences_table, suites_table, work_table
from sdpo.system.files import write_json, write_text


def write_sweep(study: StudyFolder, swept: Swept, recipe: Path) -> None:
    """Write the page and the JSON of a sweep into the study's folder."""
    found = swept.found
    pareto = pareto_figures(swept)
    others = [suites_table(found), differences_table(found)]
    weights = importance_table(swept)
    text = rendered(
        "comparison.html.j2",
        name=study.name,
        kind="sweep",
        kicker="Sweep of settings",
        facts=[
            ("over", ", ".join(swept.over)),
            ("trials", count(len(swept.selection))),
            ("selection", f"{count(swept.pairs)} pairs, {count(swept.prompts)} prompts"),
            ("report", f"{count(found.pairs)} pairs, {count(found.prompts)} prompts"),
        ],
        terms=f"{TERMS} Trial: an arm of a sweep. Selection and report: two parts of the reserve.",
        verdict=conclude_sweep(swept),
        failed=found.failed,
        sections=[
            Section("trials", "Trials", [*pareto, *arm_figures(found)], [trials_table(swept)]),
            Section(
                "differences",
                f"Against {found.arms[0].arm}",
                [],
                [table for table in others if table.rows],
            ),
            *([Section("importance", "What matters", [], [weights])] if weights.rows else []),
            Section("work", "What it took", [], [work_table(found)]),
        ],
        recipes=[(f"The best recipe: {recipe.name}", recipe.read_text(encoding="utf-8"))],
    )
    write_text(study.page, text)
    write_json(study.numbers, swept.as_json())


def sweep_tables(swept: Swept) -> list[Table]:
    """Return the tables of a sweep, best trial first."""
    found = swept.found
    tables = [
        *(trials_table(swept), differences_table(found), suites_table(found)),
        *(importance_table(swept), work_table(found)),
    ]
    return [table for table in tables if table.rows]


def importance_table(swept: Swept) -> Table:
    """Show how much each setting matters, where Optuna can tell."""
    shares = sorted(swept.importance.items(), key=lambda item: -item[1])
    return Table(
        title="Importance",
        columns=("Setting", "Share"),
        rows=tuple((key, percent(share)) for key, share in shares),
        note="Share of what settings explain of the accuracy on the selection part, as Optuna "
        "estimates it from the trials (PED-ANOVA); of few trials it is a guess.",
    )


def trials_table(swept: Swept) -> Table:
    """Show every trial on both parts of the reserve."""
    lines = {line.arm: line for line in swept.found.arms}
    on_front = {point.label for point in front(points_of(swept.found))}
    return Table(
        title="Trials",
        columns=(
            "Trial",
            "Accuracy, selection",
            "Accuracy, report",
            "γ rose, from S",
            "Mean γ",
            "KL from S",
            "On the front",
        ),
        rows=tuple(
            (
                scored.settings,
                _share(scored.accuracy),
                _share(lines[scored.settings].accuracy),
                _share(lines[scored.settings].rose),
                _nats(lines[scored.settings].gamma, 2),
                _nats(lines[scored.settings].kl, 3),
                "yes" if scored.settings in on_front else UNKNOWN,
            )
            for scored in swept.selection
        ),
        note="Best first, by ranking accuracy on the selection part, by mean γ there where that "
        "ties. All other numbers are of the report part, on which nothing was chosen; [a, b]: 95% "
        "interval, prompts resampled. γ and KL in nats. On the front: no other trial is as near to "
        "S and ranks as many pairs right.",
    )


def _share(found: Estimate) -> str:
    return f"{percent(found.mean)} {interval(found.low, found.high, digits=1, scale=100)}"


def _nats(found: Estimate | None, digits: int) -> str:
    if found is None:
        return UNKNOWN
    return f"{number(found.mean, digits=digits)} {interval(found.low, found.high, digits=digits)}"


def pareto_figures(swept: Swept) -> list[Figure]:
    """Return the figure of KL against quality; none where KL was not measured."""
    drawing = pareto_figure(points_of(swept.found))
    if not drawing:
        return []
    return [
        Figure(
            "How far from S, and what for",
            drawing,
            "Ranking accuracy on the report part against KL from S (arXiv 2502.01237, figure 3). "
            f"A colour for each value of {swept.over[0]}; lines: 95% intervals. The grey line is "
            "the front: no other trial is as near to S and ranks as many pairs right.",
        )
    ]


def conclude_sweep(swept: Swept) -> Verdict:
    """Return what was chosen, by what, and what can be concluded of it."""
    best, line = swept.selection[0], swept.found.arms[0]
    on_others = conclude(swept.found)
    sentences = [
        f"{best.settings} was chosen of {count(len(swept.selection))} trials by ranking accuracy "
        f"on {count(swept.pairs)} pairs set aside for choosing: {_share(best.accuracy)}"
        f"{_tie(swept)}.",
        f"On {count(swept.found.pairs)} other pairs, on which nothing was chosen, it ranks "
        f"{_share(line.accuracy)} right: that is the number to report.",
        _work(swept),
        *counted(swept.over),
        *(f"{settings} {how}." for settings, how in swept.pruned.items()),
        *on_others.sentences,
        *_of_kl(swept),
    ]
    return Verdict(f"Best by selection: {best.settings}.", on_others.tone, tuple(sentences))


def _tie(swept: Swept) -> str:
    ties = [each for each in swept.selection[1:] if _same(each, swept.selection[0])]
    if not ties:
        return ""
    return f", as {count(len(ties))} other{'s' * (len(ties) > 1)}, with more γ"


def _same(one: Scored, other: Scored) -> bool:
    return one.accuracy.mean == other.accuracy.mean


def _work(swept: Swept) -> str:
    trained = sum(line.trained for line in swept.found.arms)
    shared = sum(line.shared for line in swept.found.arms)
    scored = ", ".join(f"on D_{step} {count(n)}" for step, n in swept.scorings.items())
    return (
        f"{count(trained)} steps were trained and {count(shared)} shared; times that a reference "
        f"had to be scored: {scored}."
    )


def _of_kl(swept: Swept) -> list[str]:
    if any(line.kl is not None for line in swept.found.arms):
        return []
    return ["Set probe.kl_prompts=32 to see how far from S each trial goes for what it gains."]
