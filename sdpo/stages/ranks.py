"""Exchange what the processes of a stage tell each other besides tensors."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator


def fault_of_any(accelerator: "Accelerator", fault: str) -> str:
    """Return what is wrong on the first rank with a fault, the same on all; empty: nothing is.

    Every rank has to call this: a trial that failed on one of them must not make it go on in
    another way than the rest.
    """
    if accelerator.num_processes == 1:
        return fault
    from accelerate.utils import gather_object

    faults: list[str] = gather_object([fault])
    return next((told for told in faults if told), "")
