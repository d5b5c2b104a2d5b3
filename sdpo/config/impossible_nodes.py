"""Find settings of nodes that are refused from the recipe alone, each with what to do."""

from sdpo.config.nodes import address_of, impossible_slurm
from sdpo.config.running import LaunchConfig


def impossible_nodes(launch: LaunchConfig) -> list[str]:
    """Name nodes that nobody starts, or that cannot share the processes evenly."""
    problems = impossible_slurm(launch.slurm)
    if launch.nodes > 1 and launch.launcher == "local":
        problems.append(
            f"launch.nodes is {launch.nodes} with launch.launcher `local`, which starts processes "
            "on this machine alone: use `torchrun` or `slurm`"
        )
    if launch.processes % launch.nodes:
        fitting = launch.nodes * -(-launch.processes // launch.nodes)
        problems.append(
            f"launch.processes ({launch.processes}, of all nodes together) cannot be shared evenly "
            f"by launch.nodes ({launch.nodes}): set launch.processes to {fitting}"
        )
    if launch.rendezvous and address_of(launch.rendezvous) is None:
        problems.append(
            f"launch.rendezvous `{launch.rendezvous}` is no HOST:PORT, as node-1:29400 or "
            "[fd00::1]:29400"
        )
    return problems
