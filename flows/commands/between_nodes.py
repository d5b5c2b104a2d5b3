"""Say what the nodes of a training send each other: bytes, from the sizes of what travels."""

from sdpo.config.running import LaunchStrategy

_GRADIENT_BYTES = 4
"""Gradients are added in fp32, under every strategy."""


def sent_bytes(
    strategy: LaunchStrategy,
    *,
    nodes: int,
    parameters: int,
    trained: int,
    width: int,
    words: int = 0,
    micro_batches: int = 1,
    gloo: bool = False,
) -> int:
    """Return the bytes that each node sends to others in an optimizer step.

    A sum of which all keep the whole passes every node but one twice (DDP; ZeRO 1 and 2 make it
    too, though each keeps a share, and then pass the new weights round once). Weights that are
    shared are gathered for the forward and for the backward pass of each of ``micro_batches``, in
    ``width`` bytes, and their gradients come to their owners once. FSDP2 keeps ``words``, the
    embedding and the head, from the one pass to the other; over ``gloo``, on CPUs, torch makes the
    whole sum for it. Devices of one node exchange theirs within.
    """
    if nodes == 1:
        return 0
    away = (nodes - 1) / nodes
    gradients = _GRADIENT_BYTES * trained
    if strategy in ("fsdp2", "deepspeed_zero3"):
        is_fsdp = strategy == "fsdp2"
        gathered = micro_batches * width * (2 * parameters - (words if is_fsdp else 0))
        return round(away * (gathered + gradients * (2 if is_fsdp and gloo else 1)))
    return round(away * gradients * (2 if strategy == "ddp" else 3))
