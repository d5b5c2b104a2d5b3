"""Run the engine from Prefect flows and from the command line."""

import os

# Arrow's own pool keeps what was freed, a third of what a process needs; it is chosen at import.
# The engine is a library and leaves its process as it is; what starts here owns its process.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
