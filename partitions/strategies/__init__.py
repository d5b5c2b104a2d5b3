"""The strategies, one file each: what a name in the recipe does with pairs.

They import pairs, draws and what a strategy is. They are registered by :mod:`partitions`.
"""
