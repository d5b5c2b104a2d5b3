"""Define the strategies, one file each: what a name in the recipe does with pairs.

They import pairs, draws and what a strategy is. Whatever :class:`~partitions.strategy.Strategy` a
file here defines is registered by :mod:`partitions`.
"""

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from partitions.strategy import Strategy


def defined() -> Iterator[Strategy]:
    """Yield the strategies that the files of this folder define, file by file."""
    for module in sorted(iter_modules(__path__), key=lambda module: module.name):
        content = vars(import_module(f"{__name__}.{module.name}"))
        yield from (value for value in content.values() if isinstance(value, Strategy))
