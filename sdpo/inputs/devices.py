"""Resolve what a recipe leaves to the machine: devices, threads, precision."""

from sdpo.config import LaunchConfig
from sdpo.config.impossible import impossible_offload
from sdpo.errors import ConfigError
from sdpo.system import machine

_BF16_CAPABILITY = (8, 0)  # Ampere


def resolve_launch(launch: LaunchConfig) -> LaunchConfig:
    """Replace ``auto`` and 0 by what this machine has.

    Raises:
        ConfigError: this machine has no such device, or fewer devices than processes; or there is
            nothing to offload.
    """
    gpus = len(machine.cuda_capabilities())
    device, here = launch.device, launch.launcher == "local"
    if device == "auto" and not gpus and not here:
        raise ConfigError(
            f"launch.device is auto with launch.launcher {launch.launcher}, and this machine has "
            "no CUDA device, which says nothing of the nodes: set launch.device to cuda or cpu"
        )
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus and here:
        raise ConfigError("launch.device is cuda, but this machine has no CUDA device")
    if device == "cuda" and launch.processes > gpus and here:
        raise ConfigError(
            f"launch.processes is {launch.processes}, but this machine has {gpus} CUDA devices: "
            f"set launch.processes to {gpus}; a run that more have begun goes on with so many too "
            f"(sdpo resume NAME --processes {gpus})"
        )
    strategy = launch.strategy
    if strategy == "auto":
        strategy = "single" if launch.processes == 1 else "ddp"
    threads = launch.threads or max(1, machine.cores() // launch.per_node)
    update = {"device": device, "strategy": strategy, "threads": threads}
    resolved = launch.model_copy(update=update)
    if problem := impossible_offload(resolved):
        raise ConfigError(problem)
    return resolved


def resolve_precision(precision: str, launch: LaunchConfig) -> str:
    """Return bf16 where ``auto`` meets a GPU that has it, else fp32; any other value as it is.

    Raises:
        ConfigError: bf16 was asked of a GPU without it.
    """
    found = machine.cuda_capabilities()
    if launch.device == "cuda" and not found:
        if precision == "auto":
            raise ConfigError(
                "training.precision is auto, and this machine has no GPU that says whether those "
                "of the nodes have bf16: set bf16 or fp32"
            )
        return precision
    capable = launch.device == "cuda" and found[0] >= _BF16_CAPABILITY
    if precision == "bf16" and launch.device == "cuda" and not capable:
        raise ConfigError("training.precision is bf16, which this GPU does not have: use fp32")
    if precision == "auto":
        return "bf16" if capable else "fp32"
    return precision


def idle_hint(launch: LaunchConfig) -> str:
    """Return a hint on GPUs that the run leaves idle; empty where there are none."""
    gpus = len(machine.cuda_capabilities()) if launch.device == "cuda" else 0
    if gpus <= launch.processes or launch.launcher != "local":
        return ""
    return (
        f"this machine has {gpus} CUDA devices, and launch.processes is {launch.processes}: the "
        f"others stay idle. launch.processes: {gpus} uses all; CUDA_VISIBLE_DEVICES chooses which"
    )


def precision_hint(precision: str, launch: LaunchConfig) -> str:
    """Return a hint on ``training.precision`` on this machine's CPU; empty where there is none.

    ``auto`` stays fp32 there, so that one recipe means one thing on every CPU.
    """
    if launch.device != "cpu":
        return ""
    if precision == "auto" and machine.multiplies_bf16():
        return (
            "this CPU multiplies bf16 matrices in hardware (AMX): training.precision=bf16 would "
            "train faster"
        )
    if precision == "bf16" and not machine.multiplies_bf16():
        return "this CPU has no AMX, so training.precision bf16 trains no faster than fp32"
    return ""
