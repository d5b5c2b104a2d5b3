"""What the processes of a stage tell each other beside tensors."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator


def fault_of_any(accelerator: "Accelerator", fault: str) -> str:
    """What is wrong on the first rank on which something is, the same on all; empty: nothing is.

    Every rank has to ask: a trial that failed on one of them alone must not leave it on another
    way than the rest.
    """
    if accelerator.num_processes == 1:
        return fault
    from accelerate.utils import gather_object

    faults: list[str] = gather_object([fault])
    return next((told for told in faults if told), "")
