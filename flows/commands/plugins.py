"""Run ``sdpo plugins``: list what other installed packages add, and what is wrong with it."""

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape

from flows.show.console import Row, table
from partitions import OWN
from sdpo.config.strategies import strategy_uses
from sdpo.errors import PluginError
from sdpo.judges import OWN as OWN_JUDGES
from sdpo.judges import check_rule
from sdpo.layouts import OWN as OWN_LAYOUTS
from sdpo.layouts import layout_facts
from sdpo.objectives import OBJECTIVES, objective_facts
from sdpo.plugins.installed import Kind, Plugin, every

_OWN: Mapping[Kind, Mapping[str, object] | tuple[str, ...]] = {
    "objectives": OBJECTIVES,
    "strategies": OWN,
    "layouts": OWN_LAYOUTS,
    "judges": OWN_JUDGES,
}


def list_plugins(*, console: Console) -> None:
    """Print a table of all plug-ins and the faults of each, without executing any of them."""
    found = list(every())
    if not found:
        console.print("no installed package has plug-ins (CONTRIBUTING.md says how to write one)")
        return
    console.print(table([_row(plugin) for plugin in found], title="Plug-ins"))
    for plugin in found:
        if fault := fault_of(plugin):
            console.print(
                f"[red]{escape(plugin.called)}:[/] {escape(fault)}", highlight=False, soft_wrap=True
            )


def fault_of(plugin: Plugin) -> str:
    """Return why a plug-in cannot be used, as far as its facts tell; empty where it can."""
    if plugin.fault:
        return plugin.fault
    if plugin.name in _OWN.get(plugin.kind, ()):
        return f"this project has one that is called `{plugin.name}`, which is taken: rename it"
    try:
        if plugin.kind == "objectives":
            objective_facts(plugin.name)
        if plugin.kind == "strategies":
            strategy_uses(plugin.name)
        if plugin.kind == "layouts":
            layout_facts(plugin.name)
        if plugin.kind == "judges":
            check_rule(plugin.name)
        plugin.digest()
    except PluginError as error:
        return str(error)
    return ""


def _row(plugin: Plugin) -> Row:
    fault = fault_of(plugin)
    facts = plugin.stated.facts
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "what it is": str(facts.get("title") or facts.get("description") or ""),
        "distribution": f"{plugin.distribution} {plugin.version}".strip(),
        "digest": "" if fault else plugin.digest()[:16],
        "usable": "no" if fault else "yes",
    }
