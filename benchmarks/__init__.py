"""Measure time and memory beside TRL, each measured program in a process of its own.

It may import everything, and of the project only tests import it; it is no part of the
distribution.
"""

import os

# As in the command line's process, which is what is measured.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
