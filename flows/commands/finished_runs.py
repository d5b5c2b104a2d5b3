"""Run the commands about finished runs: replay, extend, verify, diff, lineage."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.commands.resume import hint
from flows.commands.run import print_result
from flows.show.comparison import ANSWERS, grounds
from flows.show.console import RunConsole, table
from sdpo.errors import UserError
from sdpo.history.compare import Section, compare
from sdpo.history.dryrun import NodeLine
from sdpo.history.extend import extend_run
from sdpo.history.faults import Findings
from sdpo.history.lineage import Lineage, lineage_of
from sdpo.history.replay import check, look, plan_replay, replay_step
from sdpo.history.results import Comparison
from sdpo.history.target import locate, locate_run
from sdpo.history.verify import verify_run
from sdpo.history.verify_model import verify_model
from sdpo.history.verify_remote import PROOFS, verify_remote
from sdpo.hooks import Host
from sdpo.store.recorded import of_known_form
from sdpo.system.words import counted

_COLOURS = {"REUSE": "green", "RUN": "cyan", "RUN IF": "yellow"}


def replay(
    target: str,
    *,
    step: int | None,
    overrides: Sequence[str],
    only: bool,
    name: str,
    dry_run: bool,
    wait: bool,
    runs_dir: Path,
    console: Console,
) -> int:
    """Make a step again in a new run, print the comparison and return the exit code.

    It is 0 where both are bitwise identical, or differ in their inputs as ``overrides`` asked; else
    1. With ``dry_run`` what would be done is only printed.

    Raises:
        UserError: no step is named, or the replay cannot be made.
    """
    found = locate(target, runs_dir=runs_dir, step=step)
    number = found.step
    if number is None:
        raise UserError("which step is to be replayed? Give --step, or a checkpoint: RUN/step-2")
    planned = plan_replay(found.run, step=number, overrides=overrides, only=only, name=name)
    if dry_run:
        with of_known_form(found.run.path):
            lines = look(planned)
        print_lines(lines, console=console)
        check(planned, lines)
        return 0
    with hint(planned.config), RunConsole(console) as listen:
        result = replay_step(planned, host=Host(listen=listen), wait=wait)
    print_result(result.chain, console=console)
    where = f"step {number} of {found.run.name} again, as {Path(result.chain.run).name}"
    print_comparison(result.comparison, where, console=console)
    asked = bool(overrides) and result.comparison.verdict == "inputs differ"
    return 0 if asked or result.comparison.verdict == "bitwise identical" else 1


def print_lines(lines: Sequence[NodeLine], *, console: Console) -> None:
    """Print a line per node: what would become of it, and why."""
    width = max(10, *(len(line.node) for line in lines))
    for line in lines:
        colour = _COLOURS[line.action]
        why = f"  {escape(line.reason)}" if line.reason else ""
        console.print(
            f"[{colour}]{line.action:<6}[/]  {line.node:<{width}}{why}",
            highlight=False,
            soft_wrap=True,
        )


def print_comparison(found: Comparison, where: str, *, console: Console) -> None:
    """Print the answer of a replay, and what it rests on."""
    colour = {"bitwise identical": "green", "inputs differ": "cyan"}.get(found.verdict, "yellow")
    answer = ANSWERS[found.verdict]
    console.print(
        f"[bold]{escape(where)}:[/] [{colour}]{answer}[/]", highlight=False, soft_wrap=True
    )
    for line in grounds(found):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def extend(
    target: str,
    sources: Sequence[str],
    *,
    overrides: Sequence[str],
    name: str,
    min_new_pairs: int,
    wait: bool,
    runs_dir: Path,
    console: Console,
) -> None:
    """Extend a run by a step over new pairs, in a new run; print why where none is made."""
    run = locate_run(target, runs_dir=runs_dir)
    with RunConsole(console) as listen:
        found = extend_run(
            run,
            sources,
            overrides=overrides,
            name=name,
            min_new_pairs=min_new_pairs,
            host=Host(listen=listen),
            wait=wait,
        )
    if found.chain is None:
        wanted = f", and {min_new_pairs} are wanted" if min_new_pairs > 1 else ""
        what = counted(found.new_pairs, "new pair") if found.new_pairs else "nothing new"
        console.print(
            f"{what} for run {run.name}{wanted}: no run is made", highlight=False, soft_wrap=True
        )
        return
    print_result(found.chain, console=console)


def verify(target: str, *, runs_dir: Path, console: Console) -> int:
    """Print every fault of a run, or of a model folder with a lineage; return 1 if any, else 0."""
    if (Path(target) / "lineage.json").is_file():
        findings = verify_model(Path(target), runs_dir=runs_dir)
        checked = counted(findings.files, "file")
        return _tell_findings(findings, f"model {Path(target).name}", checked, console)
    run = locate_run(target, runs_dir=runs_dir)
    run.check_there()
    with RunConsole(console) as listen, of_known_form(run.path):
        findings = verify_run(run, listen=listen)
    checked = f"{counted(findings.records, 'record')}, {counted(findings.files, 'file')}"
    return _tell_findings(findings, f"run {run.name}", checked, console)


def verify_kept(target: str, *, runs_dir: Path, deep: bool, console: Console) -> int:
    """Print by which proof each file that a remote store has of a run is whole, and every fault.

    Returns 1 if there is a fault, else 0.
    """
    with RunConsole(console) as listen:
        found = verify_remote(target, runs_dir=runs_dir, deep=deep, listen=listen)
    for path, proof in sorted(found.proofs.items()):
        console.print(f"{PROOFS[proof]}: {escape(path)}", highlight=False, soft_wrap=True)
    counts = [f"{n} {PROOFS[p]}" for p in PROOFS if (n := list(found.proofs.values()).count(p))]
    checked = f"{found.findings.files} files: {', '.join(counts) or 'none whole'}"
    return _tell_findings(found.findings, found.url, checked, console)


def _tell_findings(findings: Findings, name: str, checked: str, console: Console) -> int:
    for note in findings.notes:
        console.print(f"[dim]note:[/] {escape(note)}", highlight=False, soft_wrap=True)
    for fault in findings.faults:
        console.print(
            f"[red]fault:[/] [bold]{escape(fault.file)}[/] {escape(fault.what)}\n"
            f"       {escape(fault.remedy)}",
            highlight=False,
            soft_wrap=True,
        )
    count = len(findings.faults)
    if count:
        console.print(f"{escape(name)}: {count} fault{'s' * (count > 1)} ({checked})")
        return 1
    console.print(f"{escape(name)} is whole: {checked}, no fault", highlight=False)
    return 0


def diff(a: str, b: str, *, everything: bool, runs_dir: Path, console: Console) -> None:
    """Print two runs or steps side by side; only what differs unless ``everything``."""
    left, right = (locate(side, runs_dir=runs_dir) for side in (a, b))
    with of_known_form(left.run.path):
        sections = compare(left, right)
    shown = [s if everything else s.differing() for s in sections]
    names = (left.name, right.name if right.name != left.name else f"{right.name} (2)")
    same = [section.title for section in shown if not section.rows]
    for section in shown:
        if section.rows:
            console.print(_diff_table(section, names))
    if same:
        console.print(f"[dim]the same:[/] {escape('; '.join(same))}", highlight=False)


def _diff_table(section: Section, names: tuple[str, str]) -> object:
    rows = [
        {"": row.name, names[0]: _shown(row.a), names[1]: _shown(row.b)} for row in section.rows
    ]
    return table(rows, title=section.title)


def _shown(value: object) -> str:
    return "–" if value is None else str(value)


def lineage(
    target: str, *, step: int | None, as_json: bool, runs_dir: Path, console: Console
) -> int:
    """Print the chain of a model back to S; return 1 where the folder holds another, else 0."""
    with of_known_form(Path(target)):
        found = lineage_of(target, step=step, runs_dir=runs_dir)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _print_lineage(found, console)
    return 0 if found.is_whole else 1


def _print_lineage(found: Lineage, console: Console) -> None:
    console.print(
        f"[bold]{escape(found.model)}[/] of run {escape(found.run)}, in {escape(found.folder)}",
        highlight=False,
        soft_wrap=True,
    )
    rows = [
        {
            "model": link.name,
            "made by": link.kind,
            "reference": _linked(link.models.get("reference", ""), link.reference),
            "target": _linked(link.models.get("target", ""), link.target),
            "data": link.data[:12] or "–",
            "settings": ", ".join(f"{name} {value}" for name, value in link.settings.items()),
            "digest": link.model[:12],
        }
        for link in found.links
    ]
    console.print(table(rows))
    console.print(
        table([{"input": name, "digest": digest} for name, digest in found.inputs.items()])
    )
    for fault in found.faults:
        console.print(f"[red]fault:[/] {escape(fault)}", highlight=False, soft_wrap=True)
    if found.is_whole:
        console.print(
            f"the folder holds this model: its digest is {found.digest}",
            highlight=False,
            soft_wrap=True,
        )


def _linked(name: str, digest: str) -> str:
    return f"{name} {digest[:12]}".strip() if digest else "–"
