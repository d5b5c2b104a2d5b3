"""What the commands do, one module a group: run, check, resume, finished runs, models, the server.

It imports the engine and what is shown. It parses no arguments, and no Prefect is loaded by what
needs none.
"""
