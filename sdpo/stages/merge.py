"""Average the weights of models, as a stage."""

from typing import TYPE_CHECKING

import torch

from sdpo.events import EventWriter
from sdpo.identity.model_digest import model_digest
from sdpo.model.policy import load_policy, merge_adapters, save_policy
from sdpo.processes.stage_results import MergeResult
from sdpo.processes.stage_specs import MergeSpec
from sdpo.system.files import publish_folder
from sdpo.system.out_of_memory import short_memory_named

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TO_AVERAGE = "an average of models takes 12 bytes for each weight, however many models there are"


def run(spec: MergeSpec, events: EventWriter) -> MergeResult:
    """Publish (M_0 + ... + M_n) / (n + 1) as ``spec.out``, summed in float64, rounded to fp32."""
    torch.set_num_threads(spec.launch.threads)
    with short_memory_named("averaging models", remedy=_TO_AVERAGE):
        policy = _averaged(spec, events)
    with publish_folder(spec.out, replace=True) as temporary:
        save_policy(
            policy,
            temporary,
            tokenizer=spec.base,
            chat_template=spec.model.chat_template,
            max_shard_size=spec.model.max_shard_size,
        )
    return MergeResult(model=model_digest(spec.out))


@torch.no_grad()
def _averaged(spec: MergeSpec, events: EventWriter) -> "PreTrainedModel":
    """Return the last of the models with the average of all in its place."""
    sums: dict[str, torch.Tensor] = {}
    for done, named in enumerate(spec.models):
        events.progress("average", done, len(spec.models), unit="models")
        policy = merge_adapters(load_policy(named.folder, model=spec.model, digest=named.digest))
        weights = _weights(policy)
        for name, tensor in weights.items():
            if name in sums:
                sums[name] += tensor
            else:
                sums[name] = tensor.to(torch.float64, copy=True)
    events.progress("average", len(spec.models), len(spec.models), unit="models")
    for name, tensor in weights.items():
        tensor.copy_(sums.pop(name).div_(len(spec.models)))
    return policy


def _weights(policy: "PreTrainedModel") -> dict[str, torch.Tensor]:
    """Return the tensors of a model that are published and are numbers; tied ones once."""
    stored, found = policy.state_dict(), dict[str, torch.Tensor]()
    places = set[int]()
    for name, tensor in stored.items():
        if tensor.is_floating_point() and tensor.data_ptr() not in places:
            places.add(tensor.data_ptr())
            found[name] = tensor
    return found
