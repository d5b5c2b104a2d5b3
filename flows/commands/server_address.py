"""Decide at which address a server may listen, and where it is reached."""

import os
import socket
from collections.abc import Sequence
from contextlib import closing
from ipaddress import ip_address

from flows.commands.desk import AUTH
from flows.server.guard import LOOPBACK
from sdpo.errors import UserError


def check_open(host: str, hosts: Sequence[str], *, asks: bool) -> None:
    """Refuse, with a UserError, a server without a password that others could reach."""
    if asks:
        return
    if AUTH in os.environ:
        raise UserError(f"--no-auth, and {AUTH} is set: choose one")
    if host != "localhost" and not _is_loopback(host):
        raise UserError(
            f"--no-auth, and {host} is reached from other machines: whoever may submit a run may "
            "run any command here. Leave out one of the two"
        )
    if others := [name for name in hosts if name not in LOOPBACK]:
        raise UserError(f"--no-auth, and --allow-host {others[0]}: leave out one of the two")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def reached_at(host: str) -> str:
    """Return the address at which this machine reaches a server that listens at ``host``."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def check_free(host: str, port: int) -> None:
    """Refuse, with a UserError, an address that something else uses."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"{host}:{port} cannot be used ({os.strerror(error.errno or 0)}): choose another "
                "with --port, or stop what uses it"
            ) from error
