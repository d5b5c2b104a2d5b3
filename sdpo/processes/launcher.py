"""Run ``accelerate launch`` for the ranks of a stage, and end with the process that started it.

A rank that is killed can say nothing, and the others hear of it as of a broken connection or a wish
to stop: here it is told which one it was.
"""

import runpy
import signal
import sys
from pathlib import Path

from sdpo.events import ErrorEvent, EventWriter
from sdpo.processes.stage_specs import read_spec
from sdpo.processes.supervisor import die_with_parent


def killed_rank(error: BaseException) -> int | None:
    """Return the rank that was killed, of those whose ends torch gathered in ``error``, or None."""
    failures = getattr(error, "failures", None)
    ends = failures.items() if isinstance(failures, dict) else ()
    return next((rank for rank, end in ends if end.exitcode == -signal.SIGKILL), None)


def main() -> None:
    """Launch the ranks; the last argument is the path of the stage's specification."""
    die_with_parent()
    spec = Path(sys.argv[-1])
    try:
        runpy.run_module("accelerate.commands.launch", run_name="__main__", alter_sys=True)
    except Exception as error:
        rank = killed_rank(error)
        if rank is not None:
            message = (
                f"process {rank} was killed from outside (SIGKILL): by somebody, or by the system "
                "for want of memory, which its log (dmesg) says then. Run again, and the step goes "
                "on from its last saved state; with less memory: launch.strategy fsdp2"
            )
            EventWriter(read_spec(spec).events).emit(
                ErrorEvent(user=False, message=message, killed=True)
            )
        raise


if __name__ == "__main__":
    main()
