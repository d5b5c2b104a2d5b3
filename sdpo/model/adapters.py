"""Refuse adapters where they cannot be merged: the merged model must be the one that was trained.

An adapter adds ``B A x`` to a product ``W x``. That is a change of ``W`` only where the module is
such a product, and where nothing else has the same ``W``: blocks that share weights (Zamba's)
each get adapters of their own, and a merge would add up what these learned.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdpo.errors import ConfigError
from sdpo.model.held import HeldLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_REMEDY = (
    "Name others in training.lora_target_modules, or leave training.lora_r at 0 to train all "
    "weights"
)


def check_adapters(adapted: "PreTrainedModel") -> None:
    """Refuse adapters that cannot be merged; ``adapted`` is a PEFT model, also on the meta device.

    Raises:
        ConfigError: two are on one weight, or one is on a module that is no product with its
            weight; the message names them.
    """
    owners: dict[int, str] = {}
    for path, layer in adapted.named_modules():
        if not hasattr(layer, "lora_A") or not hasattr(layer, "get_base_layer"):
            continue
        base, name = layer.get_base_layer(), path.removeprefix("base_model.model.")
        # Experts are one tensor: their adapter names its parameter.
        is_held = isinstance(base, HeldLinear)  # its weight is made when it is asked for
        name_of = getattr(layer, "parameter_name", "weight")
        weight = base if is_held else getattr(base, name_of, layer)
        other = owners.setdefault(id(weight), name)
        if other != name:
            raise ConfigError(
                f"training.lora_target_modules: {other} and {name} share one weight, and would "
                "have an adapter each: merged, it would be another model than the one that was "
                f"trained. {_REMEDY}"
            )
        if isinstance(base, nn.Linear) and not is_held and not _is_product(base):
            raise ConfigError(
                f"training.lora_target_modules: {name} is a {type(base).__name__}, which does more "
                f"with its weight than to multiply: an adapter does not fit it. {_REMEDY}"
            )


def check_names(adapted: "PreTrainedModel", names: Sequence[str]) -> None:
    """Refuse ``names`` of which one has no adapter: PEFT ignores it as long as another one has.

    Names that PEFT has translated into those of weights that a mixture's experts share are not
    checked.

    Raises:
        ConfigError: the message names them.
    """
    config = adapted.peft_config["default"]
    wanted = [name for name in names if name in (config.target_modules or ())]
    there: list[str] = adapted.base_model.targeted_module_names
    missing = [n for n in wanted if not any(_is_called(p, n) for p in there)]
    if missing:
        raise ConfigError(
            f"training.lora_target_modules: no module called {' or '.join(missing)} can have an "
            "adapter in this model, so it would not be trained. Leave it out, or name modules of "
            "the model that are linear"
        )


def check_whole(policy: "PreTrainedModel", names: Sequence[str]) -> None:
    """Refuse ``names`` of modules to train whole of which one is no module with weights.

    Raises:
        ConfigError: the message names them.
    """
    there = [
        path
        for path, module in policy.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    if missing := [n for n in names if not any(_is_called(p, n) for p in there)]:
        raise ConfigError(
            f"training.lora_modules_to_save: the model has no module called "
            f"{' or '.join(missing)} with weights of its own: leave it out"
        )


def _is_called(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


@torch.no_grad()
def _is_product(layer: nn.Linear) -> bool:
    """Return whether ``layer`` computes ``W x + b``; on the meta device its shape decides."""
    if type(layer).forward is nn.Linear.forward:
        return True
    weight = layer.weight
    rows = torch.linspace(-1, 1, 2 * layer.in_features, dtype=weight.dtype, device=weight.device)
    rows = rows.view(2, layer.in_features)
    expected = nn.functional.linear(rows, weight, layer.bias)
    try:
        found = layer(rows)
    except RuntimeError:
        return False  # it takes inputs of another shape
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        return False  # a router may give its choices beside its logits
    return found.is_meta or torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
