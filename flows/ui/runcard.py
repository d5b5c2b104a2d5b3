"""Make what the Prefect UI shows of a run beside its log: tables, and one page about all of it."""

import base64
from pathlib import Path

from flows.show.console import Row
from flows.ui.folder import report_link
from sdpo.report import Summary
from sdpo.report.gamma_figures import Figure, alone
from sdpo.report.tables import Table, interval, number, short
from sdpo.stats.gamma_rows import GammaRow
from sdpo.store.lineage_file import LineageEntry
from sdpo.store.model_card import lineage
from sdpo.store.recorded import read_rows
from sdpo.store.run_folder import RunFolder


def gamma_ref_rows(run: Path) -> list[Row]:
    """Return, per finished step and probe, gamma of the model before it: its reference in sDPO.

    Of D_t that is all of it where the step scored it, and not the sample of it besides on which
    every model is measured. Gamma is in nats.
    """
    rows: list[Row] = []
    folder = RunFolder(run)
    for step in folder.complete_steps():
        path = folder.step(step) / "gamma.json"
        if step and path.is_file():
            found = [row for row in read_rows(path, GammaRow) if row.model == f"M_{step - 1}"]
            whole = {row.probe for row in found if row.whole}
            rows += [_gamma_row(step, row) for row in found if row.whole or row.probe not in whole]
    return rows


def _gamma_row(step: int, row: GammaRow) -> Row:
    return {
        "step": step,
        "model": "S" if step == 1 else row.model,
        "probe": row.probe,
        "pairs": f"{row.pairs}" if row.whole else f"{row.pairs}, a sample",
        "gamma, nats": number(row.mean),
        "95% interval": interval(row.mean_low, row.mean_high),
        "gamma > 0": number(row.ranking_accuracy, digits=3),
    }


def table_rows(table: Table) -> list[Row]:
    """Return a table of the report as Prefect takes it: one mapping a row."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def run_card(run: Path, summary: Summary) -> str:
    """Return Markdown: what came of the run, how its models came to be, where everything is."""
    folder = RunFolder(run)
    done = [step for step in folder.complete_steps() if folder.read_record(f"step-{step}")]
    record = folder.find_step(f"step-{done[-1]}") if done else None
    chain = lineage(folder, record) if record else []
    link = report_link(run)
    lines = [
        f"# Run {folder.name}",
        "",
        f"**{summary.verdict.headline}**",
        "",
        *(f"{sentence}\n" for sentence in summary.verdict.sentences),
        *([f"[Open the report]({link}), under the password of this UI.", ""] if link else []),
        *(line for figure in summary.figures for line in picture(figure)),
        *(["## Health of the chain", ""] if summary.health else []),
        *(f"- {sentence}" for sentence in summary.health),
        *([""] if summary.health else []),
        *(line for table in summary.evaluations for line in markdown(table)),
        "## Lineage",
        "",
        "| model | objective | reference | target | partition | digest |",
        "|---|---|---|---|---|---|",
        *(_lineage_row(entry) for entry in chain),
        "",
        "## Where it is",
        "",
        f"- report: `{folder.report}`",
        *(f"- {entry.name}: `{folder.model(entry.step)}`" for entry in chain[-1:]),
        f"- logs of the stages: `{run / 'logs'}`",
        "",
        f"`sdpo status {folder.name}`, `sdpo verify {folder.name}`, `sdpo lineage {folder.name}` "
        "say more.",
    ]
    return "\n".join(lines)


def picture(figure: Figure) -> list[str]:
    """Return the lines of a figure as an image in the text itself: a card can fetch nothing."""
    image = base64.b64encode(alone(figure).encode()).decode()
    return [
        f"### {figure.title}",
        "",
        f"![{figure.title}](data:image/svg+xml;base64,{image})",
        "",
        figure.caption,
        "",
    ]


def markdown(table: Table) -> list[str]:
    """Return the lines of a table of the report in Markdown, with its title."""

    def row(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    ruler = row(("---",) * len(table.columns)).replace(" ", "")
    return [f"## {table.title}", "", row(table.columns), ruler, *map(row, table.rows), ""]


def _lineage_row(entry: LineageEntry) -> str:
    inputs = entry.inputs
    cells = (
        entry.name,
        entry.objective,
        short(inputs.get("reference")),
        short(inputs.get("target", inputs.get("base"))),
        short(inputs.get("partition", inputs.get("examples"))),
        short(entry.outputs["model"]),
    )
    return f"| {' | '.join(cells)} |"
