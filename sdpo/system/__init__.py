"""What the engine asks of its machine: files that appear whole, locks, signals, watchdogs.

It knows nothing of recipes, models or runs, and imports errors and events alone.
"""
