"""Ask the machine for what the engine needs: files that appear whole, locks, signals, watchdogs.

It knows nothing of recipes, models or runs, and imports only errors and events.
"""
