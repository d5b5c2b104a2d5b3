"""Let weights that ranks share be whole for a time, whatever the strategy; others are so anyway."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def is_divided(module: nn.Module) -> bool:
    """Return whether FSDP2 holds the weights of ``module``'s own group in shares."""
    return hasattr(module, "unshard")


def in_shares(module: nn.Module) -> bool:
    """Return whether ranks share the weights of ``module``: rows by FSDP2, flat parts by ZeRO-3."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in module.parameters())


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Let the weights of ``module``'s own group be whole on this rank while within.

    Groups within it gather theirs when they compute. Every rank has to enter it.
    """
    if not is_divided(module):
        yield
        return
    module.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        module.reshard()  # type: ignore[operator]


@contextmanager
def written(module: nn.Module) -> Iterator[None]:
    """Let all weights within ``module`` be whole, fp32, on every rank, and keep what is written.

    Every rank has to enter it and write the same. FSDP2 must not have any of them whole already.
    """
    parameters = list(module.parameters())
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        with _rows_written(module):
            yield
    elif any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            yield
    else:
        yield


@contextmanager
def _rows_written(module: nn.Module) -> Iterator[None]:
    places = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for owner, name, parameter in places:
        full = nn.Parameter(parameter.full_tensor().detach(), requires_grad=False)
        owner.register_parameter(name, full)
    try:
        yield
    finally:
        for owner, name, parameter in places:
            found = owner.get_parameter(name).detach()
            owner.register_parameter(name, parameter)
            with torch.no_grad():
                parameter.to_local().copy_(found[own_rows(parameter)])


def own_rows(tensor: DTensor) -> slice:
    """Return which rows of a weight this rank has."""
    return rows_of(
        tensor.shape[0], rank=tensor.device_mesh.get_local_rank(), ranks=tensor.device_mesh.size()
    )


def rows_of(rows: int, *, rank: int, ranks: int) -> slice:
    """Return which of ``rows`` rows FSDP2 gives a rank: equally many to all but the last ones."""
    each = -(-rows // ranks)
    return slice(min(rows, rank * each), min(rows, (rank + 1) * each))
