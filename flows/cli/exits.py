"""Turn what went wrong in a command into a message and an exit code.

0 done, 1 a fault or an answer that the command's help explains, 2 the user's mistake, 130
interrupted.
"""

import errno
import tempfile
from collections.abc import Callable
from pathlib import Path

import typer

from flows.cli.options import err
from partitions import PartitionError
from sdpo.errors import Interrupted, SdpoError, UserError

_INTERRUPTED = 130

_USERS_PATHS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.ENXIO, errno.EILSEQ),
}
"""These errors are faults of a path that the user gave, and not of the machine."""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def exit_code(call: Callable[[], object]) -> int:
    """Call the command line and return its exit code; what went wrong is written to stderr.

    Errors that are neither the user's nor of a known kind are raised, with their traceback.
    """
    try:
        code = call()
    except (KeyboardInterrupt, Interrupted) as error:
        return interrupted(error)
    except (UserError, PartitionError) as error:
        return tell("error", str(error), code=2)
    except typer.TyperException as error:
        if not (message := error.format_message()):
            return 2  # no command was given: the help was shown
        where = context.command_path if (context := getattr(error, "ctx", None)) else "sdpo"
        return tell("error", f"{message} (see `{where} --help`)", code=2)
    except OSError as error:
        if error.errno in _DISK_FULL:
            return tell("failed", _no_space(error), code=1, notes=error)
        if error.errno not in _USERS_PATHS:
            raise
        return tell("error", f"{error.filename or 'a file'}: {error.strerror}", code=2)
    except SdpoError as error:
        return tell("failed", str(error), code=1, notes=error)
    if code == _INTERRUPTED:  # typer turns a KeyboardInterrupt into this code
        return interrupted()
    return code if isinstance(code, int) else 0


def _no_space(error: OSError) -> str:
    from sdpo.processes.disk_space import no_space_message

    return no_space_message(error, [Path.cwd(), Path(tempfile.gettempdir())])


def tell(what: str, message: str, *, code: int, notes: BaseException | None = None) -> int:
    """Write a message, with the notes of an error, to stderr, and return ``code``."""
    from rich.markup import escape

    err.print(f"[red]{what}:[/] {escape(message)}", highlight=False, soft_wrap=True)
    for note in getattr(notes, "__notes__", ()):
        err.print(escape(note), highlight=False, soft_wrap=True)
    return code


def interrupted(error: BaseException | None = None) -> int:
    """Say on stderr how to go on after an interruption, and return the exit code for it."""
    notes = getattr(error, "__notes__", ())
    how = "; ".join(notes) or "run the same command to go on"
    err.print(f"interrupted: what was complete stands; {how}", highlight=False, soft_wrap=True)
    return _INTERRUPTED
