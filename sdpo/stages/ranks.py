"""Exchange what the processes of a stage tell each other besides tensors."""

from typing import TYPE_CHECKING

from sdpo.model.share import share_of

if TYPE_CHECKING:
    from accelerate import Accelerator


def fault_of_any(accelerator: "Accelerator", fault: str) -> str:
    """Return what is wrong on the first rank with a fault, the same on all; empty: nothing is.

    Every rank has to call this: a trial that failed on one of them must not make it go on in
    another way than the rest.
    """
    return next((told for told in share_of(accelerator).of_all(fault) if told), "")
