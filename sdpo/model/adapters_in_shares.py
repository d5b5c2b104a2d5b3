"""Put adapters over a base that FSDP2 holds in shares: values of their own, in shares as well.

The base's modules have no values when adapters are put over them. So these are made on the CPU,
over weights of zeros that take no memory, by the code and the random numbers of one process; then
each rank keeps its rows of them.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from sdpo.model.shares import own_rows, written

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ADAPTER = "default"
_OF_BASE = ("modules_to_save", "lora_magnitude_vector")
"""What a fresh adapter has of these comes from the base's weights."""
_WRAPPED = (".base_layer", ".original_module", f".modules_to_save.{_ADAPTER}")
"""peft puts these into the names of the base's own tensors."""


def adapters_over(
    policy: "PreTrainedModel",
    put: Callable[["PreTrainedModel"], "PreTrainedModel"],
    *,
    fresh: bool,
) -> "tuple[PreTrainedModel, dict[str, torch.Tensor]]":
    """Return ``policy`` with the adapters that ``put`` puts over it, and their values by name.

    All weights of ``policy`` are on the meta device, and those of the adapters afterwards. The
    values of ``fresh`` adapters are without those that come from the base: see :func:`from_base`.
    """
    adapted = over_zeros(policy, put)
    values = {
        name: parameter.detach().clone()
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad and not (fresh and any(part in name for part in _OF_BASE))
    }
    _replace_weights(adapted, lambda p: torch.empty_like(p, device="meta"))
    return adapted, values


def over_zeros(
    policy: "PreTrainedModel", put: Callable[["PreTrainedModel"], "PreTrainedModel"]
) -> "PreTrainedModel":
    """Return ``policy`` with adapters that have values, over zeros that take no memory."""
    _replace_weights(policy, lambda p: torch.zeros((), dtype=p.dtype).expand(p.shape))
    return put(policy)


def _replace_weights(model: nn.Module, make: Callable[[nn.Parameter], torch.Tensor]) -> None:
    """Give every parameter of ``model`` another tensor; what was one parameter is one again."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if id(old) not in made:
                made[id(old)] = nn.Parameter(make(old), requires_grad=old.requires_grad)
            module.register_parameter(name, made[id(old)])


def name_in_base(name: str) -> str:
    """Return the name that a tensor of an adapted model has in the base; empty: it has none."""
    if ".lora_" in name:
        return ""
    for part in _WRAPPED:
        name = name.replace(part, "")
    return name


@torch.no_grad()
def keep_rows(adapted: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Copy this rank's rows of ``values`` into the adapters of ``adapted``."""
    for name, parameter in adapted.named_parameters():
        if name in values and isinstance(parameter, DTensor):
            parameter.to_local().copy_(values[name][own_rows(parameter)])


@torch.no_grad()
def from_base(adapted: nn.Module) -> None:
    """Give fresh DoRA adapters the magnitudes of the base's weights, as peft computes them."""
    from peft.tuners.lora import LoraLayer

    for layer in adapted.modules():
        if not isinstance(layer, LoraLayer) or _ADAPTER not in layer.lora_magnitude_vector:
            continue
        with written(layer):
            if _ADAPTER in layer.lora_A:
                parts = [layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight]
            else:
                parts = [layer.lora_embedding_A[_ADAPTER], layer.lora_embedding_B[_ADAPTER]]
            layer.lora_magnitude_vector[_ADAPTER].update_layer(
                base_layer=layer.get_base_layer(),
                lora_A=parts[0],
                lora_B=parts[1],
                scaling=layer.scaling[_ADAPTER],
            )
