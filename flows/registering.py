"""What the commands about promoted models print: promote, rollback, current."""

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.console import table
from sdpo.history.checkpoint import locate
from sdpo.registry import NamedModel, Version, current, promote, read_registry, rollback
from sdpo.store import RunFolder


def promote_run(target: str, *, name: str, why: str, runs_dir: Path, console: Console) -> None:
    """Make a run's model, or a step's, the current one."""
    found = locate(target, runs_dir=runs_dir)
    named = promote(found, runs_dir=runs_dir, name=name, why=why)
    _say(named, runs_dir, console)


def roll_back(name: str, *, to: int | None, why: str, runs_dir: Path, console: Console) -> None:
    """Make an earlier version the current one again."""
    named = rollback(name, runs_dir=runs_dir, to=to, why=why)
    _say(named, runs_dir, console)


def show_current(
    name: str, *, only_path: bool, as_json: bool, runs_dir: Path, console: Console
) -> None:
    """One name with its versions, or a line for every name."""
    named = [current(name, runs_dir=runs_dir)] if name else list(_all(runs_dir))
    if as_json:
        content = {each.name: each.model_dump() for each in named}
        print(json.dumps(content, indent=2, ensure_ascii=False))
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


def _all(runs_dir: Path) -> list[NamedModel]:
    return [found for _, found in sorted(read_registry(runs_dir).items())]


def _say(named: NamedModel, runs_dir: Path, console: Console) -> None:
    version = named.in_use
    console.print(
        f"[bold]{escape(named.name)}[/] is at version {version.version}: M_{version.step} of run "
        f"{escape(version.run)}, digest {version.digest[:16]}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"model: {_model(version, runs_dir)}", highlight=False, soft_wrap=True)


def _history(named: NamedModel, console: Console) -> None:
    console.print(table(_row(named.name, version) for version in named.versions))
    rows = [
        {
            "moved": move.when,
            "from": move.from_version or "–",
            "to": move.to_version,
            "why": move.why,
        }
        for move in named.moves
    ]
    console.print(table(rows))


def _row(name: str, version: Version) -> dict[str, object]:
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
