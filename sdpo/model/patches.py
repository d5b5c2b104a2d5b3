"""Gather all places where this project reaches into other libraries: what, why, what guards it.

Nothing else binds a forward of its own to a module, replaces a library's function, or calls what a
library does not offer. Each entry of :data:`PATCHES` says which check refuses or undoes the patch
where a newer version of the library has another formula; ``seen`` are the versions with which it
was seen to work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType, ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdpo.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import GenerationConfig, PreTrainedModel


_Answer = tuple[torch.Tensor, ...] | torch.dtype | set[torch.dtype]
"""The functions that are replaced return one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A patch is a change to a library's objects; ``guard`` names what compares or refuses."""

    what: str
    why: str
    guard: str
    seen: str


PATCHES = {
    "forward of a norm": Patch(
        what="the forward of modules whose name ends in RMSNorm",
        why="one pass and two saved tensors in place of several, in fp32 on a CPU",
        guard="sdpo.model.fused_ops._same",
        seen="transformers 5.17 to 5.23",
    ),
    "forward of a gated MLP": Patch(
        what="the forward of modules with gate_proj, up_proj and down_proj",
        why="what is left out is a sixth of all that a layer keeps for its backward pass",
        guard="sdpo.model.fused_ops._same",
        seen="transformers 5.17 to 5.23",
    ),
    "rotary function": Patch(
        what="apply_rotary_pos_emb in the module of an architecture's code",
        why="cosine and sine are saved in place of the rotated halves, in fp32 on a CPU",
        guard="sdpo.model.fused_ops._fuse_rotary",
        seen="transformers 5.17 to 5.23",
    ),
    "forward of the last block": Patch(
        what="the forward of a model's last decoder block",
        why="the feed-forward part is computed for the tokens that predict alone",
        guard="sdpo.model.last_block._is_the_same",
        seen="transformers 5.17 to 5.23",
    ),
    "forward of the head": Patch(
        what="the forward of a model's output embedding",
        why="log-probs of targets come without logits in full, under sharding wrappers too",
        guard="sdpo.model.sequence_scorer.SequenceScorer.check_head",
        seen="transformers 5.17 to 5.23",
    ),
    "attention kernel of a CPU": Patch(
        what="torch.ops.aten._scaled_dot_product_flash_attention_for_cpu and its backward",
        why="segments share one gradient buffer, where slices through autograd would make many",
        guard="sdpo.model.layouts.check.agrees",
        seen="torch 2.11 to 2.13",
    ),
    "limit of graphs": Patch(
        what="torch._dynamo.config.recompile_limit while FlexAttention's kernel is called",
        why="past torch's limit of 8 it would go on without compiling, in memory by the square",
        guard="sdpo.model.layouts.check.agrees",
        seen="torch 2.11 to 2.13",
    ),
    "compiled code of a block": Patch(
        what="nn.Module._compiled_call_impl of decoder blocks after a training",
        why="scoring and probes go through the model's own code, whose log-probs other runs share",
        guard="sdpo.stages.compiling._same",
        seen="torch 2.11 to 2.13",
    ),
    "end of a global batch": Patch(
        what="GradientState._set_sync_gradients of accelerate",
        why="DeepSpeed learns from this flag, and from nothing else, where a global batch ends",
        guard="sdpo.model.patches.global_batch_ends",
        seen="accelerate 1.15",
    ),
    "precision of ZeRO-3's sums": Patch(
        what="get_comm_dtype and get_all_comm_dtypes where DeepSpeed's optimizers look them up",
        why="ranks' gradients would be added in bf16, the dtype in which weights are gathered",
        guard="sdpo.model.patches.fp32_sums_of_ranks",
        seen="deepspeed 0.19",
    ),
    "operator for inference on a CPU": Patch(
        what="the entry of deepspeed_shm_comm in deepspeed.ops.__compatible_ops__",
        why="the first start of ZeRO on a CPU would compile it, and nothing here asks it",
        guard="sdpo.model.patches.no_operator_for_inference",
        seen="deepspeed 0.19",
    ),
    "settings of generation": Patch(
        what="generation_config of a model while it is sampled from",
        why="a repetition penalty of its own would make it another distribution",
        guard="sdpo.model.patches.generating_with",
        seen="transformers 5.17 to 5.23",
    ),
}
"""Patches have names; the functions below, and users of a kernel, are the places where they are."""


def bind_forward(module: nn.Module, forward: Callable[..., torch.Tensor]) -> None:
    """Let ``module`` answer with ``forward(module, ...)``; bound, so that a copy has its own."""
    vars(module)["forward"] = MethodType(forward, module)


def has_own_forward(module: nn.Module) -> bool:
    """Return whether something was bound to ``module`` in place of its class's forward."""
    return "forward" in vars(module)


def parameters_within(module: nn.Module, parts: tuple[str, ...]) -> bool:
    """Return whether all parameters of ``module`` are in ``parts``, or in parts of those names.

    A replacement knows no other parameters: one that starts at 1 or 0 changes no value that is
    compared before training, and would never train.
    """
    return all(name.partition(".")[0] in parts for name, _ in module.named_parameters())


def restore_forward(module: nn.Module) -> None:
    """Let ``module`` answer with its class's forward again."""
    del module.forward


def replace_function(code: ModuleType, name: str, function: Callable[..., _Answer]) -> None:
    """Let the module ``code`` find ``function`` under ``name``."""
    setattr(code, name, function)


def global_batch_ends(accelerator: "Accelerator", *, ends: bool) -> None:
    """Tell accelerate whether the micro-batch to come is the last one of a global batch.

    Raises:
        AttributeError: this version of accelerate has another way to tell it.
    """
    accelerator.gradient_state._set_sync_gradients(ends)


def fp32_sums_of_ranks() -> None:
    """Let DeepSpeed add the gradients of several ranks in fp32 under autocast, in this process.

    One attribute of a weight says in what dtype it is gathered and its gradient is added. Where it
    is fp32, ZeRO-3 gathers twice the bytes, and autograd keeps the copy in bf16 that autocast makes
    of every weight: the whole model on each rank.

    Raises:
        ConfigError: this version of DeepSpeed looks elsewhere.
    """
    from deepspeed.runtime import base_optimizer
    from deepspeed.runtime.zero import stage3

    functions: list[tuple[ModuleType, str, Callable[..., _Answer]]] = [
        (base_optimizer, "get_comm_dtype", lambda _parameter: torch.float32),
        (stage3, "get_all_comm_dtypes", lambda _parameters: {torch.float32}),
    ]
    for code, name, function in functions:
        if not hasattr(code, name):
            raise ConfigError(
                "launch.strategy deepspeed_zero3 with training.precision bf16 wants deepspeed "
                f"0.19, and the one that is installed has no {code.__name__}.{name}: install that "
                "version, or set launch.strategy to ddp or training.precision to fp32"
            )
        replace_function(code, name, function)


def no_operator_for_inference() -> None:
    """Let DeepSpeed start without the C++ with which its inference adds tensors of processes.

    On a CPU this extension is compiled where it is missing: at the first start on each node, for a
    minute or two, with a compiler that may not be there. A version that knows none compiles none.
    """
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False


def forget_compiled(block: nn.Module) -> None:
    """Let ``block`` run its own code again, after ``block.compile()``."""
    block._compiled_call_impl = None


@contextmanager
def more_graphs(most: int) -> Iterator[None]:
    """Let torch make up to ``most`` graphs of one function before it gives up, while within."""
    with torch._dynamo.config.patch(recompile_limit=most):
        yield


@contextmanager
def generating_with(model: "PreTrainedModel", settings: "GenerationConfig") -> Iterator[None]:
    """Let ``model`` generate with ``settings`` in place of its own, while within."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own
