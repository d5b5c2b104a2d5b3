"""Make again what was made, and tell how: replay, extend, verify, compare, lineage, clean-up.

Everything here reads records and runs the one chain; none of it loads a model in this process.
"""
