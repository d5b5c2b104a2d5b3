"""Find the plug-ins that a recipe names."""

from partitions import OWN
from sdpo.config import RunConfig
from sdpo.judges import OWN as OWN_JUDGES
from sdpo.layouts import OWN as OWN_LAYOUTS
from sdpo.objectives import OBJECTIVES
from sdpo.plugins.installed import Plugin, find


def named_plugins(config: RunConfig) -> dict[str, Plugin]:
    """Return the plug-ins that a recipe names, by their names in a run's inputs."""
    wanted = {each.objective for each in config.trainings.values()} - OBJECTIVES.keys()
    found = [find("objectives", name) for name in sorted(wanted)]
    if config.partition.strategy not in OWN:
        found.append(find("strategies", config.partition.strategy))
    layouts = {source.layout for source in config.data.sources} - {"", *OWN_LAYOUTS}
    found += [find("layouts", name) for name in sorted(layouts)]
    rules = {source.generate.judge.rule for source in config.data.generated} - {"", *OWN_JUDGES}
    found += [find("judges", name) for name in sorted(rules)]
    return {plugin.input: plugin for plugin in found if plugin}
