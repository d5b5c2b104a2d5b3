"""The engine of stepwise DPO: data, log-probs, objectives, trainer, run store, report."""

import os

# Arrow's own pool keeps what was freed, a third of what a process needs; it is chosen at import.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

__version__ = "0.1.0"
