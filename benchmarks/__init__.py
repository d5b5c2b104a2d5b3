"""Time and memory beside TRL, each measured program a process of its own.

It may import everything, and nothing imports it; it is no part of the distribution.
"""
