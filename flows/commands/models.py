"""Run the commands about models in use: promote, rollback, current, retrain."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.show.console import Row, RunConsole, table
from flows.show.tables import judgement_rows
from sdpo.history.new_prompts import NewRound
from sdpo.history.target import locate
from sdpo.hooks import Host
from sdpo.promotion.judge import Judgement, judgement_settings
from sdpo.promotion.retrain import Answer, Retrained, retrain
from sdpo.promotion.versions import (
    RegisteredModel,
    Version,
    current,
    promote,
    read_registry,
    rollback,
)
from sdpo.store.run_folder import RunFolder

_SHOWN = 50
"""A person is shown at most so many versions and moves, the latest."""


def promote_run(
    target: str, *, step: int | None, name: str, why: str, runs_dir: Path, console: Console
) -> None:
    """Make the model of a run, or of one of its steps, the current one, and print where it is."""
    found = locate(target, runs_dir=runs_dir, step=step)
    named = promote(found, runs_dir=runs_dir, name=name, why=why)
    _say(named, runs_dir, console)


def roll_back(name: str, *, to: int | None, why: str, runs_dir: Path, console: Console) -> None:
    """Make version ``to``, else the one before, the current one again, and print where it is."""
    named = rollback(name, runs_dir=runs_dir, to=to, why=why)
    _say(named, runs_dir, console)


def show_current(
    name: str, *, only_path: bool, as_json: bool, runs_dir: Path, console: Console
) -> None:
    """Print one name with its versions, or a line for every name."""
    named = [current(name, runs_dir=runs_dir)] if name else list(_all(runs_dir))
    if as_json:
        content = {each.name: each.model_dump() for each in named}
        print(json.dumps(content, indent=2))
    elif only_path:
        for each in named:
            print(_model(each.in_use, runs_dir))
    elif not named:
        console.print("nothing was promoted yet: sdpo promote RUN")
    elif name:
        _say(named[0], runs_dir, console)
        _history(named[0], console)
    else:
        console.print(table(_row(each.name, each.in_use) for each in named))


def retrain_named(
    name: str,
    sources: Sequence[str],
    *,
    made: NewRound | None,
    overrides: Sequence[str],
    min_new_pairs: int,
    gate: Sequence[str],
    ask: bool,
    wait: bool,
    runs_dir: Path,
    console: Console,
) -> int:
    """Train a model's next step on new pairs; return 1 where it was made and is not in use, else 0.

    ``made``: on pairs that are made of new prompts instead.

    ``ask``: whether a person is asked before it is promoted; no answer leaves the decision open.
    """
    settings = judgement_settings(gate)

    def asked(judgement: Judgement, run: RunFolder) -> Answer:
        _show(judgement, console)
        try:
            said = console.input(f"promote M_{judgement.new} of run {run.name}? \\[y/N] ")
        except EOFError:
            return Answer(approved=None)
        return Answer(approved=said.strip().lower() in ("y", "yes"))

    with RunConsole(console) as listen:
        found = retrain(
            name,
            sources,
            runs_dir=runs_dir,
            overrides=overrides,
            min_new_pairs=min_new_pairs,
            made=made,
            gate=settings,
            ask=asked if ask else None,
            host=Host(listen=listen),
            wait=wait,
        )
    if found.judgement and not ask:
        _show(found.judgement, console)
    _say_what_came(found, runs_dir, console)
    return 0 if found.status in ("promoted", "nothing new") else 1


def _show(judgement: Judgement, console: Console) -> None:
    console.print(table(judgement_rows(judgement), title="Gate: on the reserve, against S"))


def _say_what_came(found: Retrained, runs_dir: Path, console: Console) -> None:
    colour = {"promoted": "green", "nothing new": "cyan"}.get(found.status, "yellow")
    what = f"[{colour}]{found.status}:[/] " if found.run else ""
    console.print(f"{what}{escape(found.reason)}", highlight=False, soft_wrap=True)
    if found.run:
        _say(current(found.name, runs_dir=runs_dir), runs_dir, console)


def _all(runs_dir: Path) -> list[RegisteredModel]:
    return [found for _, found in sorted(read_registry(runs_dir).items())]


def _say(named: RegisteredModel, runs_dir: Path, console: Console) -> None:
    version = named.in_use
    console.print(
        f"[bold]{escape(named.name)}[/] is at version {version.version}: M_{version.step} of run "
        f"{escape(version.run)}, digest {version.digest[:16]}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"model: {escape(str(_model(version, runs_dir)))}", highlight=False, soft_wrap=True
    )


def _history(named: RegisteredModel, console: Console) -> None:
    console.print(table(_row(named.name, version) for version in named.versions[-_SHOWN:]))
    rows = [
        {
            "moved": move.when,
            "from": move.from_version or "–",
            "to": move.to_version,
            "why": move.why,
        }
        for move in named.moves[-_SHOWN:]
    ]
    console.print(table(rows))
    earlier = len(named.versions) - _SHOWN
    if earlier > 0:
        console.print(f"{earlier} earlier versions: sdpo current {named.name} --json")


def _row(name: str, version: Version) -> Row:
    return {
        "name": name,
        "version": version.version,
        "run": version.run,
        "model": f"M_{version.step}",
        "digest": version.digest[:16],
        "promoted": version.when,
        "why": version.why,
    }


def _model(version: Version, runs_dir: Path) -> Path:
    return RunFolder(runs_dir.absolute() / version.run).model(version.step)
