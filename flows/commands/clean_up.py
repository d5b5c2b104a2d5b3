"""Run ``sdpo gc``: list what nothing needs and, after a question, delete it."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.show.console import RunConsole, table
from sdpo.history.gc import Found, collect, delete
from sdpo.history.unnamed import delete_unnamed, find_unnamed
from sdpo.processes.disk_space import in_units


def clean_up(
    *, runs_dir: Path, cache: Path | None, yes: bool, dry_run: bool, console: Console
) -> None:
    """List what nothing needs and, unless ``dry_run``, delete it; ask first unless ``yes``."""
    with collect(runs_dir, cache=cache) as found:
        _print_notes(found.notes, console)
        if not found.waste:
            console.print("nothing to delete")
            return
        _print_waste(found, console)
        if dry_run:
            return
        if not yes and not _agreed(console, found):
            console.print("nothing was deleted")
            return
        said = len(found.notes)
        delete(found)
        _print_notes(found.notes[said:], console)
    console.print(f"deleted: {in_units(found.size_bytes)} are free", highlight=False)


def clean_up_store(url: str, *, yes: bool, dry_run: bool, console: Console) -> None:
    """List what no list of a run in a store names and, unless ``dry_run``, delete it."""
    found, notes = find_unnamed(url)
    _print_notes(notes, console)
    if not found:
        console.print("nothing to delete")
        return
    size = sum(each.size_bytes for each in found)
    count = sum(len(each.digests) for each in found)
    rows = [
        {
            "run": each.place.url,
            "objects": str(len(each.digests)),
            "size": in_units(each.size_bytes),
        }
        for each in found
    ]
    console.print(table(rows, title="What no list names", numeric=("objects", "size")))
    if dry_run:
        return
    if not yes and not _confirmed(console, f"delete {count} objects, {in_units(size)}?"):
        console.print("nothing was deleted")
        return
    with RunConsole(console) as listen:
        left = [note for each in found if (note := delete_unnamed(each, listen=listen))]
    _print_notes(left, console)
    console.print("deleted" if not left else "deleted what was not left alone", highlight=False)


def _print_notes(notes: Sequence[str], console: Console) -> None:
    for note in dict.fromkeys(notes):
        console.print(f"[dim]note:[/] {escape(note)}", highlight=False, soft_wrap=True)


def _print_waste(found: Found, console: Console) -> None:
    rows = [
        {"what": str(w.path), "why": w.why, "size": in_units(w.size_bytes)} for w in found.waste
    ]
    console.print(table(rows, title="What nothing needs", numeric=("size",)))


def _agreed(console: Console, found: Found) -> bool:
    return _confirmed(
        console, f"delete {len(found.waste)} of {len(found.waste)}, {in_units(found.size_bytes)}?"
    )


def _confirmed(console: Console, question: str) -> bool:
    try:
        return console.input(f"{question} \\[y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
