"""Log-probs of completions: from token ids to one sum per sequence.

The head is applied to the rows that predict completion tokens only, in chunks, and its logits are
recomputed in the backward pass: they never exist in full (algorithms: log-softmax and its gradient,
``d z = g (onehot - softmax)``). Sums are accumulated in fp32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

from sdpo.batching import HEAD_CHUNK_BYTES
from sdpo.errors import ModelError


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids of prompt and completion, int32 ``[tokens]``; ids from ``prompt`` on are scored."""

    ids: np.ndarray
    prompt: int

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return len(self.ids) - self.prompt


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Sequences padded on the right to one length.

    ``input_ids`` and ``attention_mask``: ``[rows, length]`` (the mask is None without padding).
    ``predictors``: flat indices into ``rows * length`` of the positions that predict scored tokens,
    row by row; ``targets``: the tokens they predict; ``scored``: their number per row.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    predictors: torch.Tensor
    targets: torch.Tensor
    scored: torch.Tensor

    def to(self, device: torch.device) -> "PaddedBatch":
        """The same batch on ``device``."""
        mask = self.attention_mask
        return PaddedBatch(
            self.input_ids.to(device, non_blocking=True),
            None if mask is None else mask.to(device, non_blocking=True),
            self.predictors.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.scored.to(device, non_blocking=True),
        )


def collate(sequences: Sequence[TokenSequence], *, pad_token_id: int) -> PaddedBatch:
    """Pad ``sequences`` on the right and index what is scored."""
    lengths = np.array([len(s.ids) for s in sequences])
    longest = int(lengths.max())
    ids = np.full((len(sequences), longest), pad_token_id, dtype=np.int64)
    predictors: list[np.ndarray] = []
    for row, sequence in enumerate(sequences):
        ids[row, : lengths[row]] = sequence.ids
        start = row * longest
        predictors.append(np.arange(start + sequence.prompt - 1, start + lengths[row] - 1))
    flat = np.concatenate(predictors)
    mask = None
    if lengths.min() < longest:
        mask = torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64))
    return PaddedBatch(
        input_ids=torch.from_numpy(ids),
        attention_mask=mask,
        predictors=torch.from_numpy(flat),
        targets=torch.from_numpy(ids.reshape(-1)[flat + 1]),
        scored=torch.tensor([s.scored for s in sequences]),
    )


class _ChunkedHead(torch.autograd.Function):
    """Log-prob of each target under ``softmax(transform(hidden @ weight.T + bias))``.

    Gradients flow to hidden states and, where they train, to weight and bias; the weight's is
    accumulated in fp32 over the chunks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scale: float,
        softcap: float,
    ) -> torch.Tensor:
        chunk = max(1, HEAD_CHUNK_BYTES // (4 * weight.shape[0]))
        kernel = weight.to(hidden.dtype)
        logps = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        lse = torch.empty_like(logps)
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = _logits(hidden[rows], kernel, bias, scale, softcap)
            lse[rows] = torch.logsumexp(logits, dim=-1)
            chosen = logits.gather(1, targets[rows, None]).squeeze(1)
            logps[rows] = chosen - lse[rows]
        ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.options = (chunk, scale, softcap)
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        chunk, scale, softcap = ctx.options
        gradient = gradients[0]
        _, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        kernel = weight.to(hidden.dtype)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = _logits(hidden[rows], kernel, bias, scale, softcap)
            slope = torch.exp(logits - lse[rows, None]).neg_()
            slope[torch.arange(len(slope), device=slope.device), targets[rows]] += 1
            slope *= gradient[rows, None]
            if softcap:
                slope *= 1 - (logits / softcap) ** 2
            slope *= scale
            if bias_grad is not None:
                bias_grad += slope.sum(0)
            low = slope.to(hidden.dtype)
            hidden_grad[rows] = low @ kernel
            if weight_grad is not None:
                if low.dtype == torch.float32:
                    weight_grad.addmm_(low.T, hidden[rows])
                else:
                    weight_grad += low.T @ hidden[rows]
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            None,
            None,
            None,
        )


def _logits(
    hidden: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float,
) -> torch.Tensor:
    logits = (hidden @ kernel.T).float()
    if bias is not None:
        logits += bias.float()
    if scale != 1.0:
        logits *= scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return logits


def target_logps(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    scale: float = 1.0,
    softcap: float = 0.0,
) -> torch.Tensor:
    """log p(target) per row, fp32 ``[rows]``, without logits in full.

    ``hidden``: ``[rows, width]``; ``weight``: ``[vocabulary, width]``; ``targets``: ``[rows]``.
    ``scale`` multiplies the logits, then ``softcap`` c bounds them by ``c * tanh(z / c)``.
    """
    logps: torch.Tensor = _ChunkedHead.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, scale, softcap
    )
    return logps


class SequenceScorer(nn.Module):
    """A causal language model that answers with summed log-probs of completions.

    It is one module, so that data-parallel and sharding wrappers see every parameter that is used.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        _teach_head(_inner(model))

    def forward(self, batch: PaddedBatch) -> torch.Tensor:
        """Log-prob of each row's completion, fp32 ``[rows]``, in nats."""
        inner: Any = _inner(self.model)
        hidden = inner.get_decoder()(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        rows = hidden.reshape(-1, hidden.shape[-1])[batch.predictors]
        if torch.is_autocast_enabled(rows.device.type):
            rows = rows.to(torch.get_autocast_dtype(rows.device.type))
        per_token_logps = inner.get_output_embeddings()(rows, batch.targets)
        return torch.segment_reduce(per_token_logps, "sum", lengths=batch.scored)

    @torch.no_grad()
    def check_head(self, *, vocabulary: int, device: torch.device) -> None:
        """Compare the chunked head with the model's own logits on a few tokens.

        An architecture may do more to its logits than this module knows; then training would be
        silently wrong.

        Raises:
            ModelError: they differ, or are no numbers.
        """
        ids = np.arange(8, dtype=np.int32) * 7 % vocabulary
        batch = collate([TokenSequence(ids, 1)], pad_token_id=0).to(device)
        ours: torch.Tensor = self(batch)
        model: Any = self.model
        logits = model(input_ids=batch.input_ids, use_cache=False).logits[0, :-1].float()
        own = torch.log_softmax(logits, -1).gather(1, batch.targets[:, None]).sum()
        if not torch.isfinite(own):
            raise ModelError(f"the model gives log-probs of {float(own)}: its weights are damaged")
        low = torch.is_autocast_enabled(device.type)
        rtol, atol = (1e-2, 0.5) if low else (1e-4, 1e-2)
        if not torch.allclose(ours[0], own, rtol=rtol, atol=atol):
            raise ModelError(
                f"{type(_inner(self.model)).__name__} treats its logits in a way that is not known "
                f"here: log-prob {float(ours[0]):.4f} against its own {float(own):.4f}"
            )


def _teach_head(model: Any) -> None:
    """Let the model's head answer with log-probs of targets where it is given any.

    The head stays the module it is: sharding wrappers gather a module's weights around its own
    forward and nowhere else.
    """
    head = model.get_output_embeddings()
    if "forward" in vars(head):
        return
    scale, softcap = _logit_transform(model.config)

    def forward(self: Any, hidden: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        if targets is None:
            return type(self).forward(self, hidden)
        return target_logps(
            hidden, self.weight, targets, bias=self.bias, scale=scale, softcap=softcap
        )

    head.forward = MethodType(forward, head)  # bound, so that a copy of the model has its own


def _inner(model: nn.Module) -> Any:
    """The transformers model below a PEFT wrapper."""
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(model, "get_base_model") else model


def _logit_transform(config: Any) -> tuple[float, float]:
    """(scale, softcap) that an architecture applies to its logits before the softmax."""
    scale = 1.0
    if getattr(config, "logit_scale", None):  # Cohere
        scale *= float(config.logit_scale)
    if getattr(config, "logits_scaling", None):  # Granite
        scale /= float(config.logits_scaling)
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
    return scale, float(softcap or 0.0)


def completion_states(model: Any, batch: PaddedBatch) -> torch.Tensor:
    """Hidden states that predict the scored tokens, ``[scored, width]``, in the batch's order."""
    hidden = model.get_decoder()(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    states: torch.Tensor = hidden.reshape(-1, hidden.shape[-1])[batch.predictors]
    return states


def head_logits(model: Any, states: torch.Tensor) -> torch.Tensor:
    """What the model's softmax gets for hidden ``states``: fp32 ``[rows, vocabulary]``."""
    if torch.is_autocast_enabled(states.device.type):
        states = states.to(torch.get_autocast_dtype(states.device.type))
    head = model.get_output_embeddings()
    return _logits(states, head.weight.to(states.dtype), head.bias, *_logit_transform(model.config))
