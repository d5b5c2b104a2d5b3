"""Let the last decoder block of a model compute the tokens that predict, and no others.

Of a prompt that block needs keys and values. Nobody reads what its feed-forward part makes of
the prompt's tokens: a sixth of a six-layer model's work on them, less of a deeper one's. It is left
out where the block has the parts of a Llama's and was seen to give the same.
"""

from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from sdpo.model.kinds import Option
from sdpo.model.patches import bind_forward, parameters_within, restore_forward
from sdpo.model.sequence_scorer import decoder_blocks, inner_model, plain_attention, predicting
from sdpo.system.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
_TRIED = 12
_RTOL, _LOW_RTOL = 1e-4, 5e-2
"""Hidden states may differ by so much: in fp32, and in bf16, where rounding depends on the rows."""
_PREDICTORS = (3, 7, 7, 10)


@torch.no_grad()
def prune(model: "PreTrainedModel") -> bool:
    """Let ``model``'s last block skip what no prediction needs; return whether it does now.

    The decoder then takes ``predictors``, flat indices of tokens, and answers with their states
    alone, ``[1, predictors, width]``. Without them it is what it was.
    """
    inner = inner_model(model)
    blocks = decoder_blocks(model)
    if not blocks or not all(isinstance(getattr(blocks[-1], p, None), nn.Module) for p in _PARTS):
        return False
    block = blocks[-1]
    if not parameters_within(block, _PARTS):
        return False  # one that scales the residual, say, is 1 at first and trains
    bind_forward(block, _pruned)
    inner.prunes_last_block = _is_the_same(inner)
    if not inner.prunes_last_block:
        restore_forward(block)
    return bool(inner.prunes_last_block)


class _Block(Protocol):
    """A decoder block has the parts that are known here."""

    training: bool
    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module

    def forward(
        self, hidden_states: torch.Tensor, *rest: Option, **options: Option
    ) -> torch.Tensor:
        """Return the block's hidden states."""


def _pruned(
    self: _Block,
    hidden_states: torch.Tensor,
    *rest: Option,
    predictors: torch.Tensor | None = None,
    **options: Option,
) -> torch.Tensor:
    recomputed = self.training and getattr(self, "gradient_checkpointing", False)
    if predictors is None or recomputed:  # recomputing is a wrapper around the block's own code
        states = type(self).forward(self, hidden_states, *rest, **options)
        if predictors is None:
            return states
        # Not a view of rows: what writes into a view would skip FSDP2's gathering, which warns.
        return states.flatten(0, -2)[None].index_select(1, predictors)
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)
    rows = predicting((hidden_states + attended).flatten(0, -2), predictors)[None]
    added: torch.Tensor = self.mlp(self.post_attention_layernorm(rows))
    return rows + added


def _is_the_same(inner: "PreTrainedModel") -> bool:
    """Return whether the states of some tokens are those that the whole block gives them."""
    plain_attention(inner)
    decoder, device = inner.get_decoder(), inner.get_input_embeddings().weight.device
    ids = torch.arange(_TRIED, device=device)[None] * 7 % inner.config.get_text_config().vocab_size
    predictors = torch.tensor(_PREDICTORS, device=device)
    try:
        whole = decoder(input_ids=ids, use_cache=False).last_hidden_state[0, predictors]
        some = decoder(input_ids=ids, use_cache=False, predictors=predictors).last_hidden_state
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return False  # another kind of block, whose parts have these names
    close = _LOW_RTOL if torch.is_autocast_enabled(device.type) else _RTOL
    return some.shape[1:] == whole.shape and torch.allclose(some[0], whole, rtol=close, atol=close)
