"""Handle a request to stop: what a stage does with SIGTERM and SIGINT.

Normally it ends at once. Within :func:`deferred` it goes on to the next optimizer boundary, where
its state can be saved, if there is time for that. In any case it is gone after the grace time
and a little more: a stage must not hold a run's lock after the process that started it.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sdpo.system.swallowed import send_again

GRACE_S = 10.0
"""A stage is killed so many seconds after a request to stop."""
_MARGIN_S = 1.0
_LAST_RESORT_S = 2


class _Request:
    """A request to stop is the whole process's, as signals are."""

    def __init__(self) -> None:
        self.signal = 0
        self.granted = False
        self.fits: Callable[[float], bool] | None = None


_request = _Request()


def listen() -> None:
    """Heed SIGTERM and SIGINT from here on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _heed)
    send_again(lambda error: _request.signal if isinstance(error, SystemExit) else 0)


def requested() -> int:
    """Return the number of the signal that asked to stop, or 0."""
    return _request.signal


def exit_code() -> int:
    """Return the exit code of a process that was asked to stop, as shells have it."""
    return 128 + (_request.signal or signal.SIGTERM)


@contextmanager
def deferred(fits: Callable[[float], bool]) -> Iterator[None]:
    """Let a request not end the process while within, if ``fits(seconds)`` says that it can be met.

    The block has to ask :func:`requested` and end by itself within those seconds.
    """
    _request.fits = fits
    try:
        yield
    finally:
        _request.fits = None


def _heed(number: int, _frame: FrameType | None) -> None:
    if _request.granted:
        return  # launchers repeat themselves; the alarm is set
    if not _request.signal:
        _request.signal = number
        # The kernel's own action: also where the interpreter is deep in a call that does not end.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(GRACE_S) + _LAST_RESORT_S)
    _request.granted = _request.fits is not None and _request.fits(GRACE_S - _MARGIN_S)
    if not _request.granted:
        raise SystemExit(exit_code())
