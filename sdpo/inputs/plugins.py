"""The plug-ins that a recipe names."""

from partitions import names
from sdpo.config import RunConfig
from sdpo.objectives import OBJECTIVES
from sdpo.plugins.installed import Plugin, find


def named_plugins(config: RunConfig) -> dict[str, Plugin]:
    """Return the plug-ins that a recipe names, by their names in a run's inputs."""
    wanted = {each.objective for each in config.trainings.values()} - OBJECTIVES.keys()
    found = [find("objectives", name) for name in sorted(wanted)]
    if config.partition.strategy not in names():
        found.append(find("strategies", config.partition.strategy))
    return {plugin.input: plugin for plugin in found if plugin}
