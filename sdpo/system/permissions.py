"""Ask whether the owner of this machine has permitted what a recipe may not decide by itself.

A recipe may come from somebody else, by a form, a schedule or a file. What would run code or reach
out is permitted by an environment variable of the process that works, and by nothing in a recipe.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

TASK_FOLDERS = "SDPO_TASK_FOLDERS"
"""The folders whose task files may be used, as PATH has them."""
JUDGE_ENDPOINTS = "SDPO_JUDGE_ENDPOINTS"
"""The addresses of servers that may be asked for verdicts, with spaces between them."""
SERVE = "SDPO_SERVE"
"""The commands that may be started to serve a model, a line each, with quotes as in a shell."""
SERVE_VARIABLES = "SDPO_SERVE_VARIABLES"
"""The names of variables that such a command is given besides those that all need, with spaces."""
_PORTS = {"http": 80, "https": 443}


def may_use_tasks_of(folder: Path) -> bool:
    """Return whether the task files in ``folder``, which run code, may be used on this machine."""
    given = [Path(entry) for entry in os.environ.get(TASK_FOLDERS, "").split(os.pathsep) if entry]
    real = folder.resolve()
    return any(real.is_relative_to(entry.resolve()) for entry in given if entry.is_absolute())


def may_ask(endpoint: str) -> bool:
    """Return whether this machine may send prompts and answers to a judge at ``endpoint``.

    A permitted address covers what is below its path, on the same host and port alone.
    """
    asked = _place(endpoint)
    given = [_place(each) for each in os.environ.get(JUDGE_ENDPOINTS, "").split()]
    return asked is not None and any(
        each is not None and asked[:3] == each[:3] and asked[3][: len(each[3])] == each[3]
        for each in given
    )


def may_serve(command: Sequence[str]) -> bool:
    """Return whether this machine may start ``command``, of exactly these arguments.

    A command covers no other: an argument more may be one that runs code.
    """
    return any(list(command) == given for given in _commands())


def _commands() -> list[list[str]]:
    found = []
    for line in os.environ.get(SERVE, "").splitlines():
        try:
            found.append(shlex.split(line))
        except ValueError:  # a quote that is not closed permits nothing
            continue
    return found


def serve_variables() -> tuple[str, ...]:
    """Return the names of variables that the owner gives to servers of models."""
    return tuple(os.environ.get(SERVE_VARIABLES, "").split())


def _place(address: str) -> tuple[str, str, int, list[str]] | None:
    """Return scheme, host, port and path of a plain address; None for any other text."""
    try:
        parts = urlsplit(address)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return None
    path = [each for each in parts.path.split("/") if each]
    # What programs read differently (a user before the host, dots, escapes) is no plain address.
    is_plain = not set(address) & set("@?#%\\ ") and not {".", ".."} & set(path)
    if not is_plain or parts.scheme not in _PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port, path
