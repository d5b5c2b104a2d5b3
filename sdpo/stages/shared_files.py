"""Let the ranks of a stage read what others wrote once they see it: file systems of nodes lag."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo.system.seen import ExpectedFile, as_here, see

if TYPE_CHECKING:
    from accelerate import Accelerator


def see_as_main(accelerator: "Accelerator", paths: Iterable[Path]) -> None:
    """Wait on every rank until it sees ``paths`` as the main rank does; all ranks call this.

    A rank that saw less would take another way through the stage than the rest.

    Raises:
        Fault: a rank does not see a file.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast_object_list

    told: list[list[ExpectedFile]] = [[]]
    if accelerator.is_main_process:
        told = [[file for path in paths if path.exists() for file in as_here(path)]]
    broadcast_object_list(told)
    see(told[0])


def see_of_all(accelerator: "Accelerator", mine: Sequence[Path]) -> None:
    """Wait on every rank until it sees what each rank has written, ``mine`` here.

    Raises:
        Fault: a rank does not see a file.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    files: list[ExpectedFile] = gather_object([file for path in mine for file in as_here(path)])
    see(files)
