"""Do what the commands ask, one module a group: runs, checks, models in use, the server.

It imports the engine and :mod:`flows.show`. It parses no arguments, and commands that need no
Prefect load none.
"""
