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
) -> int:
    """Return the bytes that each node sends to others in an optimizer step.

    A sum of which all keep the whole (DDP), or each a share and then all the new weights (ZeRO 1
    and 2), passes every node but one twice; weights that are shared are gathered for the forward
    and for the backward pass of each of ``micro_batches``, in ``width`` bytes, and their gradients
    come to their owners once. FSDP2 keeps ``words``, the embedding and the head, from the one pass
    to the other. Devices of one node exchange theirs within.
    """
    if nodes == 1:
        return 0
    away = (nodes - 1) / nodes
    if strategy in ("fsdp2", "deepspeed_zero3"):
        kept = words if strategy == "fsdp2" else 0
        gathered = micro_batches * width * (2 * parameters - kept)
        return round(away * (gathered + _GRADIENT_BYTES * trained))
    return round(away * 2 * _GRADIENT_BYTES * trained)
