"""Make what the Prefect UI shows of a study: one page about all of it."""

from collections.abc import Sequence

from flows.ui.runcard import markdown, picture
from sdpo.report.findings import Verdict
from sdpo.report.gamma_figures import Figure
from sdpo.report.tables import Table
from sdpo.study.folder import StudyFolder


def study_card(
    study: StudyFolder, verdict: Verdict, figures: Sequence[Figure], tables: Sequence[Table]
) -> str:
    """Return Markdown: what a study shows and what it does not, its figures, where its page is."""
    lines = [
        f"# Study {study.name}",
        "",
        f"**{verdict.headline}**",
        "",
        *(f"{sentence}\n" for sentence in verdict.sentences),
        *(line for figure in figures for line in picture(figure)),
        *(line for table in tables for line in (*markdown(table), table.note, "")),
        "## Where it is",
        "",
        f"- page: `{study.page}`",
        f"- runs: `{study.path}`",
    ]
    return "\n".join(lines)
