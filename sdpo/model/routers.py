"""Compute the load-balancing loss of mixtures of experts (arXiv 2101.03961, equations 4 to 6).

It is ``E sum_e f_e P_e``: of all choices that the routers of all layers make for all tokens,
``f_e`` is how many fall on expert e per token, and ``P_e`` is the mean probability that the routers
give it. It is a property of the tokens together: sums of both are taken of every forward, and the
loss is made of the sums of a whole global batch. What transformers adds to a model's own loss is
the same on the padded rows of one forward.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdpo.errors import ModelError
from sdpo.model.layouts import LAYOUTS, Batch, PromptGroup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sdpo.model.sequence_scorer import SequenceScorer

_RTOL, _LOW_RTOL = 1e-5, 2e-2
_NONE = "its own code makes no such loss"
_TRIED = ((3, 9, 5), (4, 2, 11))
"""The loss is compared on pairs with so many tokens of prompt, chosen and rejected."""


def has_routers(policy: "PreTrainedModel") -> bool:
    """Return whether the architecture can put out its routers' logits, told as TRL does."""
    return hasattr(policy.config.get_text_config(), "output_router_logits")


def asked_weight(policy: "PreTrainedModel") -> float:
    """Return the loss's weight that the model's configuration states; 0 where it states none."""
    config = policy.config.get_text_config()
    stated = getattr(config, "router_aux_loss_coef", None) if has_routers(policy) else None
    return float(stated or 0.0)


def router_load(
    inner: "PreTrainedModel", logits: Sequence[torch.Tensor], batch: Batch
) -> torch.Tensor:
    """Return sums over ``batch``, float64 ``[2, experts]``: each expert's choices, probabilities.

    A token counts once for every sequence that it is in, as in padded rows; padding does not count.
    ``inner`` is the model, ``logits`` are those of each of its layers, ``[tokens, experts]``.

    Raises:
        ModelError: no layer has a router, or the model's own code makes no such loss of them.
    """
    if not logits:
        raise ModelError(no_loss(inner, "none of its layers has a router"))
    if not hasattr(inner, "num_experts_per_tok"):
        raise ModelError(no_loss(inner, _NONE))
    counts = _counts(batch)
    found = []
    for of_layer in logits:
        exact = torch.promote_types(of_layer.dtype, torch.float32)
        probabilities = torch.softmax(of_layer.flatten(0, -2), -1, dtype=exact)
        chosen = probabilities.topk(inner.num_experts_per_tok, -1).indices
        choices = torch.zeros(probabilities.shape[-1], dtype=counts.dtype, device=counts.device)
        choices.index_add_(0, chosen.flatten(), counts.repeat_interleave(chosen.shape[-1]))
        found.append(torch.stack([choices, counts @ probabilities.to(counts.dtype)]))
    return torch.stack(found).sum(0)


def balance_loss(load: torch.Tensor, *, whole: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``E sum_e f_e P_e`` of a :func:`router_load`.

    Where all experts are used alike it is the number of experts that a token chooses. ``whole`` is
    the load of all the forwards that the loss is of. Then this is the part of the loss that
    ``load`` adds, with gradients of the probabilities alone, as choices have none.
    """
    of_all = load.detach() if whole is None else whole
    tokens = of_all[1].sum()  # every token's probabilities sum to 1
    return load.shape[1] * (of_all[0] / tokens * load[1] / tokens).sum()


@torch.no_grad()
def check_routers(
    scorer: "SequenceScorer", inner: "PreTrainedModel", *, device: torch.device
) -> None:
    """Compare the loss with the model's own on two pairs in padded rows.

    ``scorer``: a :class:`~sdpo.model.sequence_scorer.SequenceScorer` in eval mode, ``inner`` the
    transformers model in it.

    Raises:
        ModelError: the model has no routers, makes no such loss, or makes another one.
    """
    if not has_routers(inner):
        raise ModelError(no_loss(inner, "it is no mixture of experts whose routers can be seen"))
    vocabulary = inner.config.get_text_config().vocab_size
    ids = np.arange(64, dtype=np.int32) * 7 % vocabulary
    groups = [PromptGroup(ids[:p], (ids[p : p + c], ids[-r:])) for p, c, r in _TRIED]
    batch = LAYOUTS["padded"].collate(groups, pad_token_id=0, device=device.type).to(device)
    _, load = scorer(batch, routers=True)
    answer = inner(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        use_cache=False,
        output_router_logits=True,
    )
    own = getattr(answer, "aux_loss", None)
    if not isinstance(own, torch.Tensor):
        raise ModelError(no_loss(inner, _NONE))
    ours, theirs = float(balance_loss(load)), float(own)
    close = _LOW_RTOL if torch.is_autocast_enabled(device.type) else _RTOL
    if not abs(ours - theirs) <= close * abs(theirs):
        raise ModelError(
            no_loss(inner, f"its own code makes another one ({theirs:.6g}, here {ours:.6g})")
        )


def no_loss(inner: "PreTrainedModel", why: str) -> str:
    """Return the refusal of a model that has no such loss to add."""
    return (
        f"training.router_aux_loss has nothing to weigh: of {type(inner).__name__} the routers' "
        f"load-balancing loss is not to be had ({why}). Leave training.router_aux_loss at 0"
    )


def _counts(batch: Batch) -> torch.Tensor:
    """Return in how many sequences each token of the rows is, float64 ``[tokens]``."""
    if batch.sequences is not None:
        return batch.sequences.flatten().double()
    if batch.attention_mask is not None:
        return batch.attention_mask.flatten().double()
    return torch.ones(batch.input_ids.numel(), dtype=torch.float64, device=batch.input_ids.device)
