"""Define what a reader of a data layout is, and find the readers there are."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from sdpo.errors import DataError, PluginError
from sdpo.plugins.facts import Stated, stated
from sdpo.plugins.installed import Plugin, find, unknown, usable_names
from sdpo.system.json_values import Cells

Reader = Callable[[Cells], Cells | str]
"""A reader makes of a row, as it is in the file, the parts of a pair, or says why it is none.

The parts are ``prompt``, ``chosen`` and ``rejected`` (text, or messages with ``role`` and
``content``), and where the data has them ``system``, ``chosen_score`` and ``rejected_score``.
"""

_R = TypeVar("_R", bound=Reader)
_NEEDED = frozenset({"prompt", "chosen", "rejected"})
_PARTS = _NEEDED | {"system", "chosen_score", "rejected_score"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A layout has these facts: a description, and the columns that its reader reads."""

    description: str
    reads: tuple[str, ...]


def layout(*, description: str, reads: tuple[str, ...]) -> Callable[[_R], _R]:
    """State the facts about the layout whose reader is decorated, as literals.

    They are those of :class:`Facts` and are read from the source's text: a call does nothing.
    """
    return lambda reader: reader


def _of_this_project() -> dict[str, tuple[str, Facts]]:
    """Return module and facts of each reader in this folder, by its name."""
    return {
        name: (file.stem, _made(states))
        for file in sorted(Path(__file__).parent.glob("*.py"))
        for name, states in stated(file.read_text(encoding="utf-8"), "layout").items()
    }


def _made(states: Stated) -> Facts:
    """Return the facts that a source states.

    Raises:
        PluginError: one is missing, unknown, of another kind, or no literal.
    """
    facts, description, reads = states.facts, *map(states.facts.get, ("description", "reads"))
    if not isinstance(description, str):
        raise PluginError("its fact `description` is no text")
    if not isinstance(reads, tuple) or not all(isinstance(name, str) for name in reads):
        raise PluginError("its fact `reads` is no tuple of the names of columns")
    if others := {*facts, *states.computed} - {"description", "reads"}:
        raise PluginError(f"its fact `{min(others)}` is not known")
    return Facts(description=description, reads=reads)


OWN = _of_this_project()
"""By its name, each layout of this project has its module and facts here."""


def layout_names() -> list[str]:
    """Return the names of all layouts, those of plug-ins that can be used last."""
    return [*OWN, *(name for name in usable_names("layouts") if name not in OWN)]


def layout_facts(name: str) -> Facts:
    """Return the facts about a layout of this project or of a plug-in.

    Raises:
        PluginError: there is none of this name, or its facts cannot be used.
    """
    if name in OWN:
        return OWN[name][1]
    plugin = _plugin(name)
    try:
        return _made(plugin.stated)
    except PluginError as error:
        raise PluginError(f"the {plugin.called} cannot be used: {error}") from error


def layouts_of(columns: Set[str]) -> list[str]:
    """Return the names of the layouts whose readers read some of ``columns`` and no others."""
    found = []
    for name in layout_names():
        try:
            reads = layout_facts(name).reads
        except PluginError:
            continue
        if reads and columns >= set(reads):
            found.append(name)
    return found


def reader_of(name: str) -> Reader:
    """Return the reader of a layout, importing it; what it gives is checked.

    Raises:
        PluginError: there is none of this name, or it cannot be imported.
    """
    layout_facts(name)
    if name in OWN:
        module = import_module(f"{__package__}.{OWN[name][0]}")
        return _checked(f"layout `{name}`", getattr(module, name))
    plugin = _plugin(name)
    return _checked(plugin.called, plugin.load())


def _plugin(name: str) -> Plugin:
    plugin = find("layouts", name)
    if plugin is None:
        raise PluginError(unknown("layouts", name, OWN))
    if plugin.fault:
        raise PluginError(f"the {plugin.called} cannot be used: {plugin.fault}")
    return plugin


def _checked(called: str, reader: Reader) -> Reader:
    def read(row: Cells) -> Cells | str:
        try:
            made = reader(row)
        except Exception as error:
            raise DataError(
                f"the {called} fails on this row: {type(error).__name__}: {error}"
            ) from error
        if isinstance(made, str):
            return made
        if not isinstance(made, Mapping) or not _NEEDED <= made.keys() <= _PARTS:
            what = ", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__
            raise DataError(
                f"the {called} gives {what or 'nothing'} for this row, where "
                f"{', '.join(sorted(_NEEDED))} were due (and {', '.join(sorted(_PARTS - _NEEDED))} "
                "where there are any), or a text that says why it is no pair"
            )
        return made

    return read
