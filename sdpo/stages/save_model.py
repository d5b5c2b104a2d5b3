"""Write the model that a step trained: weights from one process, or the adapter that goes on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from sdpo.errors import DivergedError
from sdpo.identity.model_digest import model_digest
from sdpo.model.handed_on import adapter_tensors, save_adapter
from sdpo.model.policy import copy_tokenizer, save_policy
from sdpo.processes.stage_specs import StepSpec
from sdpo.stages.publish_shares import diverged
from sdpo.system.files import publish_folder

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


def save_whole(
    policy: "PreTrainedModel",
    *,
    spec: StepSpec,
    accelerator: "Accelerator",
    weights: dict[str, torch.Tensor] | None,
) -> str:
    """Write ``policy`` as the step's model, and return its digest, empty on all ranks but one.

    ``weights`` are given where the policy itself holds only a share of them.

    Raises:
        DivergedError: a weight is NaN or infinite.
    """
    if not accelerator.is_main_process:
        return ""
    _check_finite(weights or policy.state_dict())
    folder = spec.folder / "model"
    with publish_folder(folder, replace=True) as temporary:
        save_policy(
            policy,
            temporary,
            tokenizer=spec.base,
            weights=weights,
            chat_template=spec.model.chat_template,
            max_shard_size=spec.model.max_shard_size,
        )
    return model_digest(folder)


def save_handed_on(
    adapted: "PreTrainedModel", *, spec: StepSpec, accelerator: "Accelerator"
) -> str:
    """Write the adapter of ``adapted`` as the step's model; return its digest as above.

    Every rank calls it, since ranks may share the adapter.

    Raises:
        DivergedError: a weight of the adapter is NaN or infinite.
    """
    tensors = adapter_tensors(adapted)
    if not accelerator.is_main_process:
        return ""
    _check_finite(tensors)
    folder = spec.folder / "model"
    with publish_folder(folder, replace=True) as temporary:
        save_adapter(
            adapted,
            temporary,
            tensors=tensors,
            input_model=spec.input_model,
            precision=spec.model.base_precision,
        )
        copy_tokenizer(spec.base, temporary, chat_template=spec.model.chat_template)
    return model_digest(folder)


def _check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse to publish a model that the last update spoiled."""
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise DivergedError(diverged(name))
