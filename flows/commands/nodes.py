"""Be a node of a run: find where it waits, and do what it says."""

from collections.abc import Callable

from sdpo.config.nodes import address_of
from sdpo.errors import ConfigError
from sdpo.processes.nodes.member import join
from sdpo.processes.nodes.rendezvous import address_by_variables, number_within_node


def join_run(rendezvous: str, *, patience_s: float, tell: Callable[[str], None]) -> int:
    """Be a node of the run at ``rendezvous``, HOST:PORT, and return the exit code.

    Where a launcher starts it several times on a node, the first one is the node and starts all
    its processes; the others end at once.

    Raises:
        ConfigError: it is no address, or there is none.
    """
    if number := number_within_node():
        tell(f"process {number} that was started on this node: the first one joins for all of it")
        return 0
    address = address_of(rendezvous) if rendezvous else address_by_variables()
    if address is None and rendezvous:
        raise ConfigError(f"--rendezvous {rendezvous} is no HOST:PORT, as node-1:29400")
    if address is None:
        raise ConfigError(
            "where is the run? Name its launch.rendezvous (--rendezvous HOST:PORT), or set "
            "MASTER_ADDR and MASTER_PORT"
        )
    return join(address, patience_s=patience_s, tell=tell)
