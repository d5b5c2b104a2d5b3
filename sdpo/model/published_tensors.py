"""Name the tensors by which a model is published, and give them whole, one at a time.

Ranks may hold shares of them: rows by FSDP2, flat parts by ZeRO-3.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from sdpo.model.shard_files import Form

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def reads_as_it_is(policy: "PreTrainedModel") -> bool:
    """Return whether the architecture's files have the tensors that its modules have."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return not get_model_conversion_mapping(policy, add_legacy=False)


def other_tensors(kind: str) -> str:
    """Return the refusal of a model of this ``kind`` whose files have other tensors."""
    return (
        f"{kind} has other tensors in its files than in its modules, and launch.strategy fsdp2 "
        "reads each tensor as it is: set launch.strategy to ddp or deepspeed_zero3"
    )


def tied_names(policy: "PreTrainedModel") -> dict[str, str]:
    """Return names of weights that are other weights, each with the name that is published."""
    return dict(getattr(policy, "all_tied_weights_keys", None) or {})


def forms_of(policy: "PreTrainedModel") -> dict[str, Form]:
    """Return the form of every tensor that is published, by its name; one for tied weights."""
    tied = tied_names(policy)
    tensors = policy.state_dict(keep_vars=True)
    return {
        name: Form(tensor.dtype, tuple(getattr(tensor, "ds_shape", tensor.shape)))
        for name, tensor in tensors.items()
        if tied.get(name) not in tensors
    }


def whole_tensors(
    policy: "PreTrainedModel", names: Iterable[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor whole, on every rank, one at a time; every rank has to take them all."""
    tensors = policy.state_dict(keep_vars=True)
    for name in names:
        tensor = tensors[name]
        if isinstance(tensor, DTensor):
            whole: torch.Tensor = tensor.full_tensor()
            yield name, whole.detach()
        elif hasattr(tensor, "ds_id"):  # a weight that ZeRO-3 holds in shares
            import deepspeed

            with deepspeed.zero.GatheredParameters([tensor]):
                yield name, tensor.detach()
        else:
            yield name, tensor.detach()


def not_finite(policy: "PreTrainedModel") -> str:
    """Return the name of a tensor whose rows on this rank are not all finite; empty: none is."""
    for name, tensor in policy.state_dict(keep_vars=True).items():
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        own = getattr(tensor, "ds_tensor", own)
        if not torch.isfinite(own).all():
            return str(name)
    return ""
