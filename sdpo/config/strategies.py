"""Find the partition strategies that a recipe may name: those here, and those of plug-ins."""

from collections.abc import Callable
from dataclasses import replace
from typing import ParamSpec, TypeVar

from partitions import OWN, PartitionError, Strategy, get, register
from sdpo.errors import PluginError
from sdpo.plugins.installed import Plugin, find, unknown, usable_names

P = ParamSpec("P")
R = TypeVar("R")


def strategy_names() -> list[str]:
    """Return the names of all strategies, those of plug-ins that can be used last."""
    return [*OWN, *(name for name in usable_names("strategies") if name not in OWN)]


def strategy_uses(name: str) -> frozenset[str]:
    """Return the settings that a strategy reads, as its facts say; nothing is executed.

    Raises:
        PluginError: there is none of this name, or its facts cannot be used.
    """
    return get(name).uses if name in OWN else _uses(_plugin(name))


def load_strategy(name: str) -> None:
    """Make a strategy known to :mod:`partitions`, importing it if it is a plug-in's.

    Raises:
        PluginError: there is none of this name, or it cannot be imported.
    """
    if name in OWN:
        return
    plugin = _plugin(name)
    strategy = plugin.load()
    if not isinstance(strategy, Strategy):
        raise PluginError(f"the {plugin.called} cannot be used: it is no partitions.Strategy")
    assign, needs = _guarded(plugin, strategy.assign), _guarded(plugin, strategy.needs)
    register(replace(strategy, assign=assign, needs=needs), again=True)


def _plugin(name: str) -> Plugin:
    plugin = find("strategies", name)
    if plugin is None:
        raise PluginError(unknown("strategies", name, OWN))
    if fault := plugin.fault or strategy_fault(plugin):
        raise PluginError(f"the {plugin.called} cannot be used: {fault}")
    return plugin


def _guarded(plugin: Plugin, function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` such that its failures are reported as the plug-in's."""

    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except PartitionError:
            raise
        except Exception as error:
            raise PluginError(
                f"the {plugin.called} fails: {type(error).__name__}: {error}"
            ) from error

    return guarded


def strategy_fault(plugin: Plugin) -> str:
    """Return what is wrong with the facts of a plug-in's strategy; empty where nothing is."""
    facts = plugin.stated.facts
    if facts.get("name") != plugin.name:
        return f"its fact `name` is {facts.get('name')!r} and its entry point `{plugin.name}`"
    for fact in ("description", "when_empty"):
        if not isinstance(facts.get(fact), str):
            return f"its fact `{fact}` is no text"
    return "" if isinstance(facts.get("uses"), frozenset) else "its fact `uses` is no frozenset"


def _uses(plugin: Plugin) -> frozenset[str]:
    uses = plugin.stated.facts["uses"]
    return frozenset(map(str, uses)) if isinstance(uses, frozenset) else frozenset()
