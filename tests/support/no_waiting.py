"""What is written counts as written: no test waits for the disk.

A tiny run asks for a hundred files to be on the disk, at several milliseconds each. What a power
cut would leave of them no test can look at.
"""

import os


def wait_for_no_disk() -> None:
    """Let ``os.fsync`` of this process, and of its forks, refuse what it refuses, and wait not."""

    def counts_as_written(descriptor: int) -> None:
        os.fstat(descriptor)

    os.fsync = counts_as_written
