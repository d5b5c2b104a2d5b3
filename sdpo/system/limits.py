"""Bound the time and memory of code that somebody else wrote: a chat template is a program.

transformers runs it in a sandbox, which keeps it from the machine but not from looping or from
filling the memory.
"""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from sdpo.errors import ModelError


@contextmanager
def bounded(what: str, *, seconds: float, size_bytes: int) -> Iterator[None]:
    """Run the block with no more than ``seconds`` of computing and no more memory than given.

    Computing is counted and not the time, which other processes take too. ``size_bytes`` are beyond
    what the process has already. It works only in a process's main thread, where signals arrive.

    Raises:
        ModelError: ``what`` wanted more.
    """

    def end(_signal: int, _frame: FrameType | None) -> None:
        raise ModelError(f"{what} has computed for {seconds:.0f} s without an end")

    before = signal.signal(signal.SIGPROF, end)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = _address_space_bytes() + size_bytes
    fits = [limit for limit in (allowed, soft, hard) if limit != resource.RLIM_INFINITY]
    # Again each second: what a handler raises within a destructor or a callback is swallowed.
    signal.setitimer(signal.ITIMER_PROF, seconds, 1)
    resource.setrlimit(resource.RLIMIT_AS, (min(fits), hard))
    try:
        yield
    except MemoryError as error:
        raise ModelError(f"{what} wants more than {size_bytes / 1e9:.0f} GB of memory") from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        with suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()
