"""Say which stages go to other nodes, and keep the place where these find the chain.

The chain's process holds the socket at the rendezvous from its beginning to its end, and each
stage's head accepts from it. A member that comes between two stages waits in its queue; once the
chain is gone, however it went, the kernel closes it, and nobody waits any more.
"""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from sdpo.config import LaunchConfig
from sdpo.config.nodes import Address, address_of
from sdpo.errors import ConfigError
from sdpo.processes.spec import Spec
from sdpo.system import machine

SOCKET = "SDPO_RENDEZVOUS_FD"
"""A stage's head finds the chain's socket by this variable."""
PORT = 29400
_QUEUE = 128
_LAUNCHERS = ("", "PET_")
"""Launchers set MASTER_ADDR and MASTER_PORT, Kubeflow's with a prefix."""
_OF_TORCHRUN = "TORCHELASTIC_RUN_ID"
_WITHIN_A_NODE = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
"""Launchers that start several processes on a node number them there by one of these."""


def address_by_variables(variables: Mapping[str, str] = os.environ) -> Address | None:
    """Return the address that a launcher has set for all nodes; None where there is none.

    torchrun itself listens at MASTER_PORT for as long as its processes live: for those it is the
    next port.
    """
    for prefix in _LAUNCHERS:
        host, port = (variables.get(f"{prefix}MASTER_{name}", "") for name in ("ADDR", "PORT"))
        if host:
            address = address_of(
                f"[{host}]:{port or PORT}" if ":" in host else f"{host}:{port or PORT}"
            )
            taken = address is not None and not prefix and _OF_TORCHRUN in variables
            return replace(address, port=address.port + 1) if address and taken else address
    return None


def number_within_node(variables: Mapping[str, str] = os.environ) -> int:
    """Return the number that a launcher gave this process on its node; 0 where it gave none."""
    found = (variables.get(name, "") for name in _WITHIN_A_NODE)
    return next((int(number) for number in found if number.isdigit()), 0)


def rendezvous_of(launch: LaunchConfig) -> Address:
    """Return where the chain waits for other nodes."""
    given = address_of(launch.rendezvous) if launch.rendezvous else address_by_variables()
    return given or Address(socket.gethostname(), PORT)


def takes_part(launch: LaunchConfig) -> bool:
    """Return whether the chain's machine is one of the nodes: where it has what they have."""
    has_devices = launch.device == "cpu" or len(machine.cuda_capabilities()) >= launch.per_node
    return launch.launcher == "torchrun" and has_devices


def goes_to_nodes(spec: Spec) -> bool:
    """Return whether a stage is started by a head on the nodes, and not on this machine alone.

    Those are stages of all processes of the launch, and others that need a device which this
    machine does not have.
    """
    launch = spec.launch
    if launch.launcher == "local" or not spec.uses_device:
        return False
    return spec.in_processes or not takes_part(launch)


def launch_of(spec: Spec) -> LaunchConfig:
    """Return the processes and nodes that a stage has: one of each unless it is of them all."""
    return spec.launch if spec.in_processes else spec.launch.alone


@contextmanager
def listening(launch: LaunchConfig) -> Iterator[int | None]:
    """Listen at the rendezvous while within, and yield the socket's descriptor; None: no need to.

    Raises:
        ConfigError: the address is not one of this machine's, or in use.
    """
    if launch.launcher != "torchrun":
        yield None
        return
    server, _ = listener(rendezvous_of(launch))
    with server:
        yield server.fileno()


def slurm_address(launch: LaunchConfig) -> Address:
    """Return where a stage's head waits for members that SLURM brings; port 0: any free one."""
    return address_of(launch.rendezvous) or Address(socket.gethostname(), 0)


def listener(address: Address, *, any_address: bool = False) -> tuple[socket.socket, Address]:
    """Return a socket that listens at ``address``, and the address with the port that it has.

    ``any_address``: it listens at all of this machine's, of which ``address`` is one.

    Raises:
        ConfigError: the address is not one of this machine's, or in use.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM
        )[0]
        host = "" if any_address else place[0]
        server = socket.create_server((host, place[1]), family=family, backlog=_QUEUE)
    except OSError as error:
        raise ConfigError(
            f"nobody can be waited for at {address} ({error.strerror or error}): name an address "
            "of this machine that the other nodes reach, and a free port (launch.rendezvous)"
        ) from error
    return server, Address(address.host, server.getsockname()[1])
