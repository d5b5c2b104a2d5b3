"""Find the installed plug-ins, each with its facts or with what is wrong with it."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any, Literal

from sdpo.errors import PluginError
from sdpo.plugins.facts import NOTHING_STATED, Stated, stated
from sdpo.plugins.package import digest_of_files, is_of_one, module_file, package_roots
from sdpo.plugins.source import import_from_source

Kind = Literal["objectives", "strategies", "layouts", "judges"]
KINDS: dict[Kind, str] = {
    "objectives": "objective",
    "strategies": "Strategy",
    "layouts": "layout",
    "judges": "rule",
}
"""Each kind is here with what states its facts."""
_ONE: dict[Kind, str] = {
    "objectives": "objective",
    "strategies": "partition strategy",
    "layouts": "data layout",
    "judges": "rule of a judge",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """A plug-in is one entry point of an installed distribution.

    ``packages``: what else the distribution has to import, by name. ``fault``: why the plug-in
    cannot be used, if so.
    """

    kind: Kind
    name: str
    distribution: str
    version: str
    module: str
    attribute: str
    packages: tuple[str, ...] = ()
    stated: Stated = NOTHING_STATED
    fault: str = ""

    @property
    def called(self) -> str:
        """Return what messages call it."""
        return f"{_ONE[self.kind]} `{self.name}` of {self.distribution} {self.version}"

    @property
    def input(self) -> str:
        """Return the name of its digest among the inputs of a run."""
        return f"plugin.{self.kind}.{self.name}"

    def digest(self) -> str:
        """Return the digest over all files of its distribution's packages, as they are now.

        Raises:
            PluginError: it is not there any more.
        """
        try:
            roots = {root for name in (self.module, *self.packages) for root in package_roots(name)}
            return digest_of_files(sorted(roots))
        except (LookupError, OSError) as error:
            raise PluginError(f"the {self.called} cannot be read: {error}") from error

    def load(self) -> Any:
        """Import its module from its source, and return what the entry point names.

        Raises:
            PluginError: its facts cannot be used, importing it fails, or its files have changed
                since it was imported.
        """
        if self.fault:
            raise PluginError(f"the {self.called} cannot be used: {self.fault}")
        digest = self.digest()
        if _imported.setdefault(self.module, digest) != digest:
            raise PluginError(
                f"the {self.called} has changed since this process imported it: start a new one"
            )
        import_from_source((self.module, *self.packages))
        try:
            return getattr(import_module(self.module), self.attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"the {self.called} cannot be imported ({self.module}): "
                f"{type(error).__name__}: {error}. Mend or reinstall {self.distribution}, or take "
                "the name out of the recipe"
            ) from error


_imported: dict[str, str] = {}
"""By their modules, these are the digests of plug-ins when this process imported them."""


def forget() -> None:
    """Look for plug-ins anew: distributions were installed, or removed, meanwhile."""
    installed.cache_clear()
    _imported.clear()


@cache
def installed(kind: Kind) -> tuple[Plugin, ...]:
    """Return the plug-ins of a kind, by name. Nothing of theirs is executed."""
    found = [_plugin(kind, point) for point in entry_points(group=f"sdpo.{kind}")]
    times = Counter(plugin.name for plugin in found)
    twice = {
        name: " and ".join(sorted(p.distribution for p in found if p.name == name))
        for name, count in times.items()
        if count > 1
    }
    return tuple(
        replace(plugin, fault=f"{twice[plugin.name]} both have one of this name")
        if plugin.name in twice
        else plugin
        for plugin in sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))
    )


def find(kind: Kind, name: str) -> Plugin | None:
    """Return the plug-in of this kind and name, whatever is wrong with it; None without one."""
    return next((plugin for plugin in installed(kind) if plugin.name == name), None)


def unknown(kind: Kind, name: str, own: Iterable[str]) -> str:
    """Say that nothing of the project's ``own`` and of no plug-in is called ``name``."""
    known = [*own, *usable_names(kind)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`? " if near else ""
    return (
        f"`{name}` is not known (known: {', '.join(known)}); {hint}`sdpo plugins` lists what "
        "installed packages add, and what is wrong with it"
    )


def usable_names(kind: Kind) -> list[str]:
    """Return the names of those that nothing is known to be wrong with."""
    return [plugin.name for plugin in installed(kind) if not plugin.fault]


def every() -> Iterator[Plugin]:
    """Return all plug-ins, kind by kind."""
    return (plugin for kind in KINDS for plugin in installed(kind))


def _plugin(kind: Kind, point: EntryPoint) -> Plugin:
    known = Plugin(
        kind=kind,
        name=point.name,
        distribution=point.dist.name if point.dist else "an unnamed distribution",
        version=point.dist.version if point.dist else "",
        module=point.module,
        attribute=point.attr,
        packages=_packages(point.dist),
    )
    try:
        text = module_file(point.module).read_text(encoding="utf-8")
        states = stated(text, KINDS[kind])
    except (LookupError, OSError, ValueError, SyntaxError) as error:
        return replace(known, fault=f"its source cannot be read: {error}")
    if point.attr not in states:
        return replace(
            known,
            fault=f"{point.module} states no `{KINDS[kind]}(...)` of `{point.attr or point.name}`",
        )
    return replace(known, stated=states[point.attr])


def _packages(distribution: Distribution | None) -> tuple[str, ...]:
    """Return what a distribution has to import, without namespaces that others share."""
    if distribution is None:
        return ()
    names = (distribution.read_text("top_level.txt") or "").split()
    for file in distribution.files or ():
        outer = file.parts[0]
        if file.suffix == ".py" and not outer.startswith("__editable__"):
            names.append(outer.removesuffix(".py"))
    return tuple(sorted({name for name in names if is_of_one(name)}))
