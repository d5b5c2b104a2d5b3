"""Hold a model in shares, one on each rank, by FSDP2: from its files' first byte to its last.

A share is a run of rows of every weight, fp32. The modules are made on the meta device, each rank
reads its own rows from the safetensors files, and a block's weights are whole on a rank only while
the block computes.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor

from sdpo.config import ModelConfig, TrainingConfig
from sdpo.config.training import Recomputation
from sdpo.errors import ModelError
from sdpo.identity.adapter_folder import base_folder, is_adapter, recorded_base
from sdpo.identity.model_digest import TensorEntry, tensor_entries
from sdpo.identity.model_folder import refusals, view_of
from sdpo.model.adapters_in_shares import adapters_over, from_base, keep_rows, name_in_base
from sdpo.model.handed_on import put_over
from sdpo.model.merged_start import merged_tensors
from sdpo.model.policy import (
    add_adapters,
    check_complete,
    check_digest,
    known_kernels,
    two_heads,
)
from sdpo.model.prepare import forwards_known
from sdpo.model.published_tensors import other_tensors, reads_as_it_is, tied_names
from sdpo.model.randomness import switch_off
from sdpo.model.recomputation import recompute
from sdpo.model.sequence_scorer import SequenceScorer, TokenSequence, collate, decoder_blocks
from sdpo.model.shares import own_rows, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLOATS = {"F64", "F32", "F16", "BF16"}


def load_in_shares(
    folder: Path,
    *,
    model: ModelConfig,
    device: torch.device,
    bf16: bool = False,
    offload: bool = False,
    digest: str = "",
    recomputed: Recomputation | None = None,
    fresh: TrainingConfig | None = None,
    merges: bool = False,
    warn: Callable[[str], None] = lambda _: None,
) -> SequenceScorer:
    """Load this rank's share of the model in ``folder``, and return its scorer.

    Every rank of the default process group calls it. With ``bf16`` the model computes with copies
    of its weights in that precision; the fp32 weights are what trains. With ``offload`` they stay
    in the machine's memory and travel to ``device`` for a block's time. ``digest`` is the model's,
    where this rank is to check it. Where the folder holds an adapter, it is over its base, or with
    ``merges`` in it; ``fresh`` are the settings of new ones that weights get. Then adapters alone
    train.

    Raises:
        ConfigError: as :func:`sdpo.model.policy.add_adapters`.
        ModelError: as :func:`sdpo.model.policy.load_policy`; or the architecture's weights have
            other names or forms in its files than in its modules.
    """
    base = base_folder(folder)
    with ExitStack() as stack:
        stack.enter_context(refusals(f"the model in {folder}"))
        view = stack.enter_context(view_of(folder, code=model.trust_remote_code))
        check_digest(folder, digest)
        base_view = view
        if base != folder:
            base_view = stack.enter_context(view_of(base, code=model.trust_remote_code))
            check_digest(base, recorded_base(folder).digest if digest else "")
        policy = _empty(base_view, model=model)
        policy.name_or_path = policy.config.name_or_path = str(base)
        entries = {entry.name: entry for entry in tensor_entries(base)}
        _check_names(base, policy, entries, warn=warn)
        _check_forms(base, policy, entries)
        merges = merges and is_adapter(folder)
        adapted, values = _adapted(policy, base if merges else folder, view, fresh=fresh)
        if recomputed:
            recompute(policy, recomputed)
        scorer = SequenceScorer(adapted, low=bf16)
        _divide(scorer, device=device, bf16=bf16, offload=offload)
        _read(base, policy, entries)
        if merges:
            over = _empty(base_view, model=model)
            _put_in(policy, merged_tensors(over, folder, view, read=_whole_from(entries)))
        keep_rows(adapted, values)
        if fresh and (merges or not is_adapter(folder)):
            from_base(adapted)
    with forwards_known(policy), torch.no_grad():
        # The first forward tells FSDP2 which module is the outermost one.
        scorer.eval()(collate([TokenSequence(np.zeros(2, np.int32), 1)], pad_token_id=0).to(device))
        with whole(scorer):
            switch_off(policy)
    return scorer


def _adapted(
    policy: "PreTrainedModel", folder: Path, view: Path, *, fresh: TrainingConfig | None
) -> "tuple[PreTrainedModel, dict[str, torch.Tensor]]":
    """Return ``policy`` with the adapters that it is to have, and the values of these."""
    if is_adapter(folder):
        return adapters_over(policy, lambda base: put_over(base, folder, view), fresh=False)
    if fresh:
        torch.manual_seed(fresh.seed)  # every rank draws what one process would
        return adapters_over(policy, lambda base: add_adapters(base, fresh), fresh=True)
    return policy, {}


def _empty(view: Path, *, model: ModelConfig) -> "PreTrainedModel":
    """Return the model's modules without weights, but with what its code computes at its making."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    code = model.trust_remote_code
    config = AutoConfig.from_pretrained(view, trust_remote_code=code, local_files_only=True)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"the model in {view.name} is quantised, and launch.strategy fsdp2 shares fp32 weights "
            "alone: set launch.strategy to single or ddp"
        )
    with init_empty_weights(include_buffers=False), known_kernels(model.attention):
        policy = AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32,
            attn_implementation=model.attention,
            trust_remote_code=code,
        )
    policy.tie_weights()
    return policy


def _check_names(
    folder: Path,
    policy: "PreTrainedModel",
    entries: dict[str, TensorEntry],
    *,
    warn: Callable[[str], None],
) -> None:
    """Refuse tensors that are not those of the modules, name by name."""
    if not reads_as_it_is(policy):
        raise ModelError(other_tensors(type(policy).__name__))
    tied = tied_names(policy)
    names = set(policy.state_dict())
    absent = {n for n in names - entries.keys() if tied.get(n, n) not in entries}
    absent -= {source for target, source in tied.items() if target in entries}
    unused = entries.keys() - names
    check_complete(folder, policy, missing=absent, unused=unused, warn=warn)


def _check_forms(folder: Path, policy: "PreTrainedModel", entries: dict[str, TensorEntry]) -> None:
    """Refuse tensors of another shape or kind than the modules', and weights of no dimension."""
    for name, tensor in policy.state_dict(keep_vars=True).items():
        entry = entries.get(name)
        if isinstance(tensor, nn.Parameter) and not tensor.dim():
            raise ModelError(
                f"{type(policy).__name__} has a weight that is a single number ({name}), which "
                "launch.strategy fsdp2 cannot share: set launch.strategy to ddp"
            )
        if entry is None:
            continue
        if entry.shape != tuple(tensor.shape):
            raise ModelError(
                f"{folder}: {name} has the shape {list(entry.shape)}, and by config.json it has "
                f"{list(tensor.shape)}"
            )
        if isinstance(tensor, nn.Parameter) and entry.dtype not in _FLOATS:
            raise ModelError(
                f"{folder}: {name} is of {entry.dtype}, and weights that train are of "
                f"{', '.join(sorted(_FLOATS))}"
            )


def _divide(scorer: SequenceScorer, *, device: torch.device, bf16: bool, offload: bool) -> None:
    """Let FSDP2 hold the weights: a group for each block, one for all that is outside of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    compute = torch.bfloat16 if bf16 else None
    precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32)
    where = CPUOffloadPolicy() if offload else OffloadPolicy()
    for group in (*decoder_blocks(scorer.model), scorer):
        fully_shard(group, mesh=mesh, mp_policy=precision, offload_policy=where)
    made = {name: buffer.clone() for name, buffer in scorer.named_buffers()}
    every = list(scorer.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in reversed(every)}
    same = {name: first[id(parameter)] for name, parameter in every}
    scorer.to_empty(device=torch.device("cpu") if offload else device)
    for name, buffer in made.items():
        owner, _, last = name.rpartition(".")
        setattr(scorer.get_submodule(owner), last, buffer.to(device))
    for name, source in same.items():  # what was emptied was made anew, each name for itself
        if name != source:
            owner, _, last = name.rpartition(".")
            scorer.get_submodule(owner).register_parameter(last, scorer.get_parameter(source))


def _read(folder: Path, policy: "PreTrainedModel", entries: dict[str, TensorEntry]) -> None:
    """Copy this rank's rows of every tensor from the files."""
    tied = tied_names(policy)
    with ExitStack() as stack, torch.no_grad():
        files = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in sorted({entry.file for entry in entries.values()})
        }

        def read(name: str, rows: slice) -> torch.Tensor:
            found: torch.Tensor = files[entries[name].file].get_slice(name)[rows]
            return found

        for full_name, tensor in policy.state_dict(keep_vars=True).items():
            if not (name := name_in_base(full_name)):
                continue
            if not isinstance(tensor, DTensor):
                tensor.copy_(files[entries[name].file].get_tensor(name))
                continue
            own, rows = tensor.to_local(), own_rows(tensor)
            stored = [n for n in {name, tied.get(name, name)} if n in entries]
            if not own.numel() or not stored:
                continue
            found = read(stored[0], rows)
            if len(stored) > 1 and not torch.equal(found, read(stored[1], rows)):
                raise ModelError(two_heads(folder))
            own.copy_(found)


def _whole_from(entries: dict[str, TensorEntry]) -> Callable[[str], torch.Tensor]:
    """Return what reads a tensor whole from its file, by its name."""

    def read(name: str) -> torch.Tensor:
        with safe_open(entries[name].file, framework="pt") as file:
            found: torch.Tensor = file.get_tensor(name)
        return found

    return read


@torch.no_grad()
def _put_in(policy: "PreTrainedModel", tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy this rank's rows of whole ``tensors``, which have the names of the base."""
    places = [(name_in_base(n), t) for n, t in policy.state_dict(keep_vars=True).items()]
    for name, found in tensors:
        for place, tensor in places:
            if place == name and isinstance(tensor, DTensor):
                tensor.to_local().copy_(found[own_rows(tensor)])
            elif place == name:
                tensor.copy_(found)
