"""Hand an adapter on from step to step: load it over its base, go on with it, publish it.

With ``training.lora_handoff: continue`` the base stays as it is, and M_t is base + adapter_t,
exactly: nothing is ever added into the weights, and a step costs as much disk as its adapter. What
is scored, trained and published are the same modules.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sdpo.errors import ConfigError, ModelError
from sdpo.identity.adapter_folder import (
    ADAPTER,
    ADAPTER_BASE,
    FULL,
    adapter_weights,
    base_folder,
    read_adapter_config,
    recorded_base,
)
from sdpo.identity.model_digest import model_digest
from sdpo.identity.model_folder import refusals
from sdpo.model.adapters import check_adapters
from sdpo.model.published_tensors import whole_tensors
from sdpo.system.files import json_text, write_text
from sdpo.system.json_values import Json

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

_KNOWN = frozenset(
    {
        *("r", "lora_alpha", "target_modules", "exclude_modules", "fan_in_fan_out", "bias"),
        *("use_rslora", "use_dora", "modules_to_save", "layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern", "target_parameters", "ensure_weight_tying"),
    }
)
"""These keys of adapter_config.json make the modules of an adapter; they are handed to peft."""
_WITHOUT_EFFECT = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "task_type"),
        *("inference_mode", "init_lora_weights", "loftq_config", "lora_dropout", "revision"),
        *("lora_ga_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size"),
        "runtime_config",
    }
)
"""These say where things are, or how training began and went, and nothing of base + adapter."""
_NAMED = 3


def has_adapters(policy: nn.Module) -> bool:
    """Return whether ``policy`` is a PEFT model, with adapters that are not merged."""
    return hasattr(policy, "merge_and_unload")


def put_over(base: "PreTrainedModel", folder: Path, view: Path) -> "PreTrainedModel":
    """Return ``base`` with the adapter of ``folder`` over it, fp32; the adapter alone trains.

    ``view`` holds the files that were digested. The adapter has no dropout:
    see :func:`drop_in_adapters`.

    Raises:
        ModelError: the adapter does something that is not known here, or is of another model.
        ConfigError: it is on modules that an adapter does not fit.
    """
    adapted = _with_modules(base, folder)
    stored = load_file(adapter_weights(view))
    from peft.utils import set_peft_model_state_dict

    with refusals(f"the adapter in {folder}"):
        found = set_peft_model_state_dict(adapted, stored)
    own = {name for name, p in adapted.named_parameters() if p.requires_grad}
    if missing := sorted(own & set(found.missing_keys)):
        raise ModelError(
            f"{folder}: the adapter lacks {len(missing)} of its tensors ({_few(missing)}): they "
            "would be random"
        )
    if unused := sorted(found.unexpected_keys):
        raise ModelError(
            f"{folder}: {len(unused)} tensors of the adapter have no place in its base "
            f"({_few(unused)}): it is the adapter of another model"
        )
    return adapted


def shape_of(base: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """Return ``base`` with modules as the adapter of ``folder`` has them, without its values.

    Raises:
        ModelError, ConfigError: as :func:`put_over`, but for what only the tensors show.
    """
    return _with_modules(base, folder)


def _with_modules(base: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    from peft import get_peft_model

    with refusals(f"the adapter in {folder}"):
        adapted = get_peft_model(base, _lora_config(folder))
    check_adapters(adapted)
    return adapted


def _lora_config(folder: Path) -> "LoraConfig":
    from peft import LoraConfig

    config = read_adapter_config(folder)
    odd = [n for n, value in config.items() if n not in _KNOWN | _WITHOUT_EFFECT and value]
    if odd:
        raise ModelError(
            f"{folder / ADAPTER} sets {', '.join(sorted(odd))}, which is not known here: merge the "
            "adapter into its base (peft's merge_and_unload) and start from that"
        )
    known = {name: value for name, value in config.items() if name in _KNOWN}
    return LoraConfig(task_type="CAUSAL_LM", **known)


def check_form(adapted: "PreTrainedModel", asked: "PreTrainedModel") -> None:
    """Refuse to go on with an adapter whose form is not the one that the settings ask for.

    ``asked`` is the same base with a fresh adapter of the step's settings; it may be on the meta
    device.

    Raises:
        ConfigError: they differ; the message says in what.
    """
    there, wanted = _trained_shapes(adapted), _trained_shapes(asked)
    keeps = (
        "what is handed on keeps its form from step to step. Set it as the adapter has it, or set "
        "training.lora_handoff: merge"
    )
    if odd := sorted(there.keys() ^ wanted.keys()):
        side = "has" if odd[0] in there else "lacks"
        raise ConfigError(
            f"training.lora_target_modules, lora_dora, lora_modules_to_save: the adapter that is "
            f"handed on {side} {_few(odd)}, and the recipe asks for other parts: {keeps}"
        )
    for name, shape in there.items():
        if shape != wanted[name]:
            raise ConfigError(
                f"training.lora_r: {name} of the adapter that is handed on has the shape {shape}, "
                f"and lora_r asks for {wanted[name]}: {keeps}"
            )
    scales, asked_scales = _scales(adapted), _scales(asked)
    for name, scale in scales.items():
        if scale != asked_scales[name]:
            raise ConfigError(
                f"training.lora_alpha, lora_rslora: the adapter that is handed on is scaled by "
                f"{scale:g} ({name}), and the recipe asks for {asked_scales[name]:g}: {keeps}"
            )


def _trained_shapes(adapted: "PreTrainedModel") -> dict[str, tuple[int, ...]]:
    named = adapted.named_parameters()
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in named if p.requires_grad}


def _scales(adapted: "PreTrainedModel") -> dict[str, float]:
    """Return by module what multiplies the product of its adapter."""
    return {
        path: float(scale)
        for path, module in adapted.named_modules()
        if hasattr(module, "lora_A")  # some attention blocks have a scaling of their own
        for scale in module.scaling.values()
    }


def idle_adapters(unreached: list[str]) -> list[str]:
    """Return the modules whose adapters are among the parameters ``unreached`` by any loss.

    Experts are left out: few tokens reach only some of them.
    """
    names = [name.rpartition(".lora_A.")[0] for name in unreached if ".lora_A." in name]
    return [n.removeprefix("model.base_model.model.") for n in names if ".experts" not in n]


def drop_in_adapters(policy: nn.Module, rate: float) -> None:
    """Let the adapters of ``policy`` drop this share of their inputs in training, 0 for none."""
    for module in policy.modules():
        drops = getattr(module, "lora_dropout", None)
        if not isinstance(drops, nn.ModuleDict):
            continue
        for name in list(drops):
            drops[name] = nn.Dropout(rate) if rate else nn.Identity()


def adapter_tensors(adapted: "PreTrainedModel") -> dict[str, torch.Tensor]:
    """Return the tensors of the adapter of ``adapted`` under peft's names, whole, on the CPU.

    Where ranks share them, every rank calls it.
    """
    from peft.utils import get_peft_model_state_dict

    trained = {id(p) for p in adapted.parameters() if p.requires_grad}
    every = adapted.state_dict(keep_vars=True)
    names = [name for name, tensor in every.items() if id(tensor) in trained]
    tensors = {name: tensor.cpu().clone() for name, tensor in whole_tensors(adapted, names)}
    found: dict[str, torch.Tensor] = get_peft_model_state_dict(
        adapted, state_dict=tensors, save_embedding_layers=False
    )
    return {name: tensor.clone() for name, tensor in found.items()}


def save_adapter(
    adapted: "PreTrainedModel",
    folder: Path,
    *,
    tensors: dict[str, torch.Tensor],
    input_model: Path,
    precision: str = FULL,
) -> None:
    """Write the adapter of ``adapted`` into the existing ``folder``, in peft's own format.

    ``tensors`` are its own, from :func:`adapter_tensors`. ``input_model`` is the folder of the
    model that the step started from: its base, or an adapter of that base; ``precision`` the one in
    which that is held. Beside the adapter stands which base it is of, by digest. A config.json must
    not: transformers would take the folder for one with weights.
    """
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    base = base_folder(input_model)
    said = {"digest": recorded_base(input_model).digest or model_digest(base)}
    said |= {} if precision == FULL else {"precision": precision}
    write_text(folder / ADAPTER, json_text(_published_config(adapted, base)))
    write_text(folder / ADAPTER_BASE, json_text(said))


def _published_config(adapted: "PreTrainedModel", base: Path) -> dict[str, Json]:
    """Return ``adapter_config.json``, with its sets in order and the folder of ``base``."""
    config = adapted.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": str(base), "revision": None, "inference_mode": True}
    plain: dict[str, Json] = json.loads(json.dumps(config, default=sorted))
    return plain


def _few(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
