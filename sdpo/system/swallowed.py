"""Send signals again where Python cannot pass on what their handlers raise.

A handler runs wherever the interpreter happens to be. Within a destructor or a callback of a weak
reference (importing a module has one) an exception ends there, with a line on stderr, and whoever
asked a process to stop would wait in vain.
"""

import os
import sys
import threading
from collections.abc import Callable

_AGAIN_S = 0.05


def send_again(asked: Callable[[BaseException], int]) -> None:
    """Have a signal sent again after what its handler raised was swallowed.

    Args:
        asked: gives the number of the signal that an exception stems from; 0: it stems from none.
    """
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        if error is None or not (number := asked(error)):
            before(unraisable)
            return
        timer = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
