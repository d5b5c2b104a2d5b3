"""Let decoder blocks compute activations again in the backward pass, all of them or cheap ones."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from torch._ops import OpOverload
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)

from sdpo.config.training import Recomputation
from sdpo.model.kinds import Option

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Contexts: TypeAlias = tuple[AbstractContextManager[None], AbstractContextManager[None]]
"""These stand around a block: one as it computes, one as it does so again."""

_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_grouped_mm"}
_ATTENTION = ("attention", "flash_attn")
"""Names of operators, or parts of them, whose results are not computed again."""


def recompute(policy: "PreTrainedModel", what: Recomputation = "blocks") -> None:
    """Let the blocks of ``policy`` compute in the backward pass again what they did not keep.

    With ``blocks`` they keep their input alone. With ``selective`` they keep the results of matrix
    products and of attention, which take nearly all of the time, and compute the rest from these
    (arXiv 2205.05198, section 5).
    """
    options: dict[str, bool | Callable[[], Contexts]] = {"use_reentrant": False}
    if what == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _kept)
    # transformers renamed it on the way to version 6.
    renamed = getattr(policy, "activation_checkpointing_enable", None)
    (renamed or policy.gradient_checkpointing_enable)(options)


def _kept(
    context: SelectiveCheckpointContext, operator: OpOverload, *_: Option, **__: Option
) -> CheckpointPolicy:
    """Return whether the result of an operator is kept, as torch asks for each."""
    name = str(getattr(operator, "_opname", operator))
    costly = name in _PRODUCTS or any(part in name for part in _ATTENTION)
    return CheckpointPolicy.MUST_SAVE if costly else CheckpointPolicy.PREFER_RECOMPUTE
