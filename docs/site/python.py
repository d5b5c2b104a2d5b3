"""Make the page of the Python API: what ``import sdpo`` gives, and what plug-ins and listeners use.

The docstrings themselves are put in by mkdocstrings when the site is built.
"""

from collections.abc import Iterator

import sdpo

_PARTS = {
    "What `import sdpo` gives": "",
    "Objectives: what a plug-in states": (
        "sdpo.objectives.facts.objective",
        "sdpo.objectives.facts.Objective",
    ),
    "What an objective's formula is given": ("sdpo.objectives.losses.PairLogps",),
    "Partition strategies": (
        "partitions.strategy.Strategy",
        "partitions.strategy.Assignment",
        "partitions.strategy.PartitionSettings",
        "partitions.pairs.Pairs",
    ),
    "Data layouts": ("sdpo.layouts.readers.layout",),
    "Events": ("sdpo.events",),
    "Errors": ("sdpo.errors",),
}


def documented() -> Iterator[str]:
    """Yield the full names of what the page has."""
    for names in _PARTS.values():
        yield from names or _public()


def page() -> str:
    """Return the page: a directive of mkdocstrings for each name."""
    parts = [
        "# Python API\n\nHow these are used is in [from Python](../python.md) and "
        "[plug-ins](../plugins.md).\n"
    ]
    for title, names in _PARTS.items():
        parts.append(f"## {title}\n")
        for name in names or _public():
            shown = name if names else f"sdpo.{name.rpartition('.')[2]}"
            options = f"      heading: {shown}\n      heading_level: 3\n"
            parts.append(f"::: {name}\n    options:\n{options}")
    return "\n".join(parts)


def _public() -> list[str]:
    """Return where the public names of :mod:`sdpo` are defined; modules and numbers have none."""
    found = []
    for name in sorted(sdpo.__all__):
        value = getattr(sdpo, name)
        if module := getattr(value, "__module__", ""):
            found.append(f"{module}.{value.__qualname__}")
    return found
