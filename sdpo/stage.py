"""Entry point of a child process: ``python -m sdpo.stage STAGE.json``.

It may run once or, under ``accelerate launch``, once per device. Errors leave as an event that says
whose mistake they were; the traceback goes to the log.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from sdpo.errors import UserError
from sdpo.events import EventWriter
from sdpo.spec import ExportSpec, StepSpec, TokeniseSpec, ViewSpec, read_spec
from sdpo.supervisor import USER_ERROR_EXIT, die_with_parent


def main() -> None:
    """Run the stage that the command line names."""
    die_with_parent()
    signal.signal(signal.SIGTERM, _terminate)
    spec = read_spec(Path(sys.argv[1]))
    events = EventWriter(spec.events if os.environ.get("RANK", "0") == "0" else None)
    try:
        result = _run(spec, events)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        traceback.print_exc()
        user = isinstance(error, UserError)
        failure = EventWriter(spec.events)  # any rank may be the one that knows
        failure.emit("error", user=user, message=_message(error))
        sys.exit(USER_ERROR_EXIT if user else 1)
    events.emit("result", **result)


def _run(
    spec: TokeniseSpec | ViewSpec | StepSpec | ExportSpec, events: EventWriter
) -> dict[str, object]:
    # Each kind of stage brings its own heavy libraries into this process.
    match spec:
        case TokeniseSpec():
            from sdpo.stages import tokenise

            return tokenise.run(spec, events)
        case ViewSpec():
            from sdpo.stages import tokenise

            return tokenise.view(spec)
        case StepSpec():
            from sdpo.stages import step

            return step.run(spec, events)
        case ExportSpec():
            from sdpo.stages import export

            return export.run(spec, events)


def _message(error: Exception) -> str:
    known = isinstance(error, UserError) or type(error).__module__.startswith("sdpo.")
    return str(error) if known else f"{type(error).__name__}: {error}"


def _terminate(signum: int, _frame: FrameType | None) -> None:
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
