"""Run one part in a process of its own: ``python -m benchmarks.gpu.child PART SETTINGS OUT``.

It imports what the part needs, waits for a line on its standard input, and runs. So the next part
imports torch while the one before it has the device.
"""

import importlib
import json
import sys
import time
from pathlib import Path

from benchmarks.gpu.findings import Settings, write_finding


def main() -> None:
    """Run the part that the command line names."""
    name, settings, out = sys.argv[1:]
    part = importlib.import_module(f"benchmarks.gpu.{name}")
    if not sys.stdin.readline():
        return  # whoever started this process has gone, or has no time left
    start = time.perf_counter()
    for finding in part.run(Settings(**json.loads(settings))):
        write_finding(Path(out), finding)
        seconds = time.perf_counter() - start
        print(f"{seconds:6.1f} s  {finding.verdict:4}  {finding.what}: {finding.seen}", flush=True)


if __name__ == "__main__":
    main()
