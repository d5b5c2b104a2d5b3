"""Merge the adapter that a step starts from into a base that ranks will hold in shares.

Each layer is whole for the time in which peft merges it, on the CPU, read from the base's files;
the ranks keep their rows of what comes out.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdpo.errors import ModelError
from sdpo.model.adapters_in_shares import name_in_base, over_zeros
from sdpo.model.handed_on import put_over
from sdpo.model.published_tensors import tied_names
from sdpo.model.sequence_scorer import inner_model

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel


def merged_tensors(
    policy: "PreTrainedModel", folder: Path, view: Path, *, read: Callable[[str], torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that the adapter of ``folder`` changes, merged, fp32, by name in the base.

    ``policy`` are the base's modules, on the meta device; they are of no use afterwards. ``view``
    holds the adapter's files that were digested; ``read`` gives a tensor of the base by its name.

    Raises:
        ModelError: as :func:`sdpo.model.handed_on.put_over`; or merging parts a weight from the one
            that it is tied to.
        ConfigError: as :func:`sdpo.model.handed_on.put_over`.
    """
    tied = tied_names(policy)
    adapted = inner_model(over_zeros(policy, lambda base: put_over(base, folder, view)))
    whole = {
        name_in_base(name): parameter.detach()
        for name, parameter in adapted.named_parameters(remove_duplicate=False)
        if parameter.requires_grad and name_in_base(name)
    }
    for name, source in tied.items():
        pair = [whole.get(name), whole.get(source)]
        if pair != [None, None] and (None in pair or not torch.equal(*pair)):  # type: ignore[arg-type]
            raise ModelError(
                f"{folder}: the adapter has a {name} of its own, which its base ties to {source}: "
                "set launch.strategy to ddp, or merge it into its base first (peft's "
                "merge_and_unload)"
            )
    yield from whole.items()
    for path, layer in adapted.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "merge"):
            yield _merged(layer, path, read)


def _merged(
    layer: "LoraLayer", path: str, read: Callable[[str], torch.Tensor]
) -> tuple[str, torch.Tensor]:
    """Return a layer's weight with the adapter in it, and its name in the base."""
    own = getattr(layer, "parameter_name", "weight")  # experts are one tensor with another name
    name = name_in_base(f"{path}.{own}")
    base = layer.get_base_layer()
    empty = base.get_parameter(own)
    base.register_parameter(own, nn.Parameter(read(name).float(), requires_grad=False))
    with torch.no_grad():
        layer.merge()
    merged = base.get_parameter(own).detach()
    base.register_parameter(own, empty)
    return name, merged
