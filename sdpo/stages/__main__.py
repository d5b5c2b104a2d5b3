"""Run a stage in a child process: ``python -m sdpo.stages STAGE.json``.

It may run once or, under ``accelerate launch``, once per device. Errors leave it as an event that
says whose mistake they were; the traceback goes to the log.
"""

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from sdpo.errors import Interrupted, LowMemoryError, UserError
from sdpo.events import ErrorEvent, Event, EventWriter, InterruptedEvent
from sdpo.processes.disk_space import is_disk_full, no_space_message
from sdpo.processes.judging_specs import (
    CompletionsSpec,
    EvaluateSpec,
    GenerateSpec,
    ImplicitSpec,
    JudgeSpec,
    ScoreSpec,
    SuitesSpec,
)
from sdpo.processes.stage_results import StageResult
from sdpo.processes.stage_specs import (
    ExportSpec,
    KlSpec,
    MergeSpec,
    ModulesSpec,
    ObjectivesSpec,
    StageSpec,
    StepSpec,
    TokeniseSpec,
    TrackSpec,
    ViewSpec,
    read_spec,
)
from sdpo.processes.supervisor import DISK_FULL_EXIT, EVENTS, USER_ERROR_EXIT, die_with_parent
from sdpo.system import interrupts
from sdpo.system.out_of_memory import first_line, is_out_of_memory, remedies
from sdpo.system.streams import make_lasting


def main() -> None:
    """Run the stage that the command line names."""
    make_lasting()
    die_with_parent()
    interrupts.listen()
    spec = read_spec(Path(sys.argv[1]))
    told = Path(os.environ.get(EVENTS, spec.events))
    events = EventWriter(told if os.environ.get("RANK", "0") == "0" else None)
    try:
        result = _stage(spec)(events)
    except (Interrupted, SystemExit) as ending:
        if not interrupts.requested() and not isinstance(ending, Interrupted):
            raise
        _tell(told, InterruptedEvent(message=str(ending)))
        _end(interrupts.exit_code())
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        traceback.print_exc()
        user = isinstance(error, UserError)
        full = is_disk_full(error)
        message = no_space_message(error, _places(spec)) if full else _message(error)
        again = isinstance(error, LowMemoryError)
        _tell(told, ErrorEvent(user=user, message=message, again=again))
        _end(DISK_FULL_EXIT if full else USER_ERROR_EXIT if user else 1)
    events.result(result)
    _end(0)


def _end(code: int) -> NoReturn:
    """End this process; one of several processes ends without freeing what it holds.

    A gloo group that is freed waits for its threads while it holds the interpreter's lock. A thread
    that has just ended a collective may need that lock to free a tensor: then both wait for ever.
    At this point everything has been told, and the processes have parted, or one of them has failed
    and ends the others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _stage(  # noqa: PLR0912 - a branch for each kind of stage
    spec: StageSpec,
) -> Callable[[EventWriter], StageResult]:
    """Return the function that does the work; each kind of stage brings its own heavy libraries.

    What libraries make while they are imported stays as long as the process lives. Looking through
    it for garbage takes a seventh of their import time, and 0.3 s each time after that.
    """
    gc.disable()
    try:
        match spec:
            case TokeniseSpec():
                from sdpo.stages import tokenise

                return partial(tokenise.run, spec)
            case ViewSpec():
                from sdpo.stages import tokenise

                return lambda _: tokenise.view(spec)
            case ModulesSpec():
                from sdpo.stages import modules

                return lambda _: modules.run(spec)
            case ObjectivesSpec():
                from sdpo.stages import objectives

                return lambda _: objectives.run(spec)
            case StepSpec():
                from sdpo.stages import step

                return partial(step.run, spec)
            case MergeSpec():
                from sdpo.stages import merge

                return partial(merge.run, spec)
            case KlSpec():
                from sdpo.stages import kl

                return partial(kl.run, spec)
            case GenerateSpec():
                from sdpo.stages import generate

                return partial(generate.run, spec)
            case ScoreSpec():
                from sdpo.stages import score_samples

                return partial(score_samples.run, spec)
            case ImplicitSpec():
                from sdpo.stages import implicit

                return partial(implicit.run, spec)
            case SuitesSpec():
                from sdpo.stages import suites

                return partial(suites.run, spec)
            case EvaluateSpec():
                from sdpo.stages import evaluate

                return partial(evaluate.run, spec)
            case CompletionsSpec():
                from sdpo.stages import completions

                return partial(completions.run, spec)
            case JudgeSpec():
                from sdpo.stages import judge

                return partial(judge.run, spec)
            case ExportSpec():
                from sdpo.stages import export

                return partial(export.run, spec)
            case TrackSpec():
                from sdpo.stages import track

                return partial(track.run, spec)
    finally:
        gc.freeze()
        gc.enable()


def _message(error: Exception) -> str:
    known = isinstance(error, UserError) or type(error).__module__.startswith("sdpo.")
    if not known and is_out_of_memory(error):
        return f"out of memory: {remedies()} ({first_line(error)})"
    return str(error) if known else f"{type(error).__name__}: {error}"


def _places(spec: StageSpec) -> list[Path]:
    """Return the folders that a stage writes to."""
    return [spec.run, *(getattr(spec, name, spec.run) for name in ("out", "cache"))]


def _tell(path: Path, event: Event) -> None:
    """Tell the parent; any rank may be the one that knows. On a full disk the exit code tells."""
    with contextlib.suppress(OSError):
        EventWriter(path).emit(event)


if __name__ == "__main__":
    main()
