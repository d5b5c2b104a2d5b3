"""Refuse a server of models that the owner of this machine has not permitted."""

from collections.abc import Sequence
from shlex import join

from sdpo.errors import ConfigError
from sdpo.system.permissions import SERVE, may_serve


def refuse_unpermitted(command: Sequence[str]) -> None:
    """Refuse a command that the owner of this machine has not permitted.

    Raises:
        ConfigError: says how it is permitted.
    """
    if may_serve(command):
        return
    raise ConfigError(
        f"generate.serve: {join(command)}: a recipe does not decide what is started here, so "
        "whoever owns this machine has to permit the command, with exactly these arguments: start "
        f"the worker, or this command, with that line in its environment as {SERVE}"
    )
