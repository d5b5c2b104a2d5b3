"""Compute log-probs of targets with the head in chunks, without logits in full.

Logits exist for a chunk of rows at a time and are recomputed in the backward pass (log-softmax and
its gradient: ``d z = g (onehot - softmax)``), so memory does not depend on the vocabulary times the
length. Sums are accumulated in fp32.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import nn

from sdpo.config.automatic import head_rows
from sdpo.model.kinds import Context, Gradients
from sdpo.model.patches import bind_forward, has_own_forward
from sdpo.system.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


_ADDED = 1024
"""So many rows of a product in bf16 are added to an fp32 sum at a time."""


class _Context(Context, Protocol):
    """A context has what the backward pass needs beside tensors."""

    options: tuple[int, float, float]


class _Head(Protocol):
    """A head is a model's output embedding."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class _ChunkedHead(torch.autograd.Function):
    """A target's log-prob is that under ``softmax(transform(hidden @ weight.T + bias))``.

    Gradients flow to hidden states and, where they train, to weight and bias; the weight's is
    accumulated in fp32 over the chunks.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scale: float,
        softcap: float,
    ) -> torch.Tensor:
        chunk = _rows(weight.shape[0], hidden.device)
        kernel = weight.to(hidden.dtype)
        logps = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        lse = torch.empty_like(logps)
        room = _room(min(chunk, len(targets)), kernel)
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = _logits(hidden[rows], kernel, bias, scale, softcap, room)
            chosen = logits.gather(1, targets[rows, None]).squeeze(1)
            lse[rows] = _logsumexp(logits)
            logps[rows] = chosen - lse[rows]
        ctx.save_for_backward(hidden, weight, bias, targets, lse)
        ctx.options = (chunk, scale, softcap)
        return logps

    @staticmethod
    def backward(ctx: _Context, *gradients: torch.Tensor) -> Gradients:
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        chunk, scale, softcap = ctx.options
        gradient = gradients[0]
        _, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        kernel = weight.to(hidden.dtype)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        room = _room(min(chunk, len(targets)), kernel)
        product = None
        if weight_grad is not None and room is not None and room.low is not None:
            product = torch.empty_like(kernel)
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = _logits(hidden[rows], kernel, bias, scale, softcap, room)
            bend = 1 - (logits / softcap) ** 2 if softcap else None
            slope = logits.sub_(lse[rows, None]).exp_().mul_(-gradient[rows, None])
            here = torch.arange(len(slope), device=slope.device)
            slope[here, targets[rows]] += gradient[rows]
            if bend is not None:
                slope *= bend
            if scale != 1.0:
                slope *= scale
            if bias_grad is not None:
                bias_grad += slope.sum(0)
            low = _lowered(slope, hidden.dtype, room)
            hidden_grad[rows] = low @ kernel
            if weight_grad is not None:
                _add_product(weight_grad, low.T, hidden[rows], product)
        return (
            hidden_grad,
            None if weight_grad is None else weight_grad.to(weight.dtype),
            None if bias_grad is None else bias_grad.to(bias.dtype),
            None,
            None,
            None,
        )


def _logsumexp(logits: torch.Tensor) -> torch.Tensor:
    """Return ``[rows]`` of logits that nobody needs afterwards: on a CPU they are overwritten.

    torch's own makes another tensor of their size and passes over both. What it computes is the
    same, to the bit; on a GPU that was not compared.
    """
    if logits.device.type != "cpu":
        return torch.logsumexp(logits, dim=-1)
    largest = logits.amax(-1, keepdim=True)
    largest.masked_fill_(largest.isinf(), 0.0)
    sums = logits.sub_(largest).exp_().sum(-1)
    return sums.log_().add_(largest.squeeze(-1))


class _Room(NamedTuple):
    """The places of the logits of all chunks on a CPU, ``[rows, vocabulary]``."""

    exact: torch.Tensor
    low: torch.Tensor | None
    """That of products in bf16, which are copied into ``exact``, and of slopes on their way back;
    none where all is fp32."""


def _room(rows: int, kernel: torch.Tensor) -> _Room | None:
    """Return the place of the logits of all chunks, where products are of fp32 or bf16 on a CPU.

    From the system a chunk's pages come zeroed, one by one: a sixth of the time of its product in
    fp32, and more than all of it in bf16.
    """
    if kernel.device.type != "cpu" or kernel.dtype not in (torch.float32, torch.bfloat16):
        return None
    exact = kernel.dtype == torch.float32
    if exact and torch.is_autocast_enabled("cpu"):
        return None
    shape = (rows, kernel.shape[0])
    low = None if exact else torch.empty(shape, dtype=kernel.dtype)
    return _Room(exact=torch.empty(shape), low=low)


def _product(left: torch.Tensor, right: torch.Tensor, room: _Room | None = None) -> torch.Tensor:
    """Multiply in fp32, into the first rows of ``room`` where it is given.

    A GPU sums products of bf16 in fp32 anyway: what a bf16 result would lose is its rounding, which
    for a log-prob of -100 is a quarter of a nat.
    """
    if room is not None:
        exact = room.exact[: len(left)]
        if room.low is None:
            return torch.mm(left, right, out=exact)
        return exact.copy_(torch.mm(left, right, out=room.low[: len(left)]))
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _lowered(slope: torch.Tensor, dtype: torch.dtype, room: _Room | None) -> torch.Tensor:
    """Return the slope in ``dtype``, in the place of its chunk's low logits where there is one."""
    if room is None or room.low is None:
        return slope.to(dtype)
    return room.low[: len(slope)].copy_(slope)


def _add_product(
    total: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    product: torch.Tensor | None = None,
) -> None:
    """Do ``total += left @ right`` in fp32, without a new temporary product where torch can.

    ``product``: a place for it, in the dtype of ``left``.
    """
    if product is not None:
        torch.mm(left, right, out=product)
        # Block by block: torch makes an fp32 copy of what it adds, which so stays in the cache.
        for first in range(0, len(total), _ADDED):
            block = slice(first, first + _ADDED)
            total[block].add_(product[block])
    elif left.dtype == torch.float32:
        total.addmm_(left, right)
    elif left.is_cuda and _adds_low_products(left.dtype, left.device.index):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += _product(left, right)


@lru_cache(maxsize=8)
def _adds_low_products(dtype: torch.dtype, device: int) -> bool:
    """Return whether torch adds a low-precision product to an fp32 matrix in place, and rightly."""
    place = torch.device("cuda", device)
    left, right = (torch.eye(32, dtype=dtype, device=place) for _ in range(2))
    total = torch.full((32, 32), 2.0**-20, device=place)
    try:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):  # the answer is cached: this would not be one
            raise
        return False
    return bool(torch.equal(total, torch.eye(32, device=place) + 2.0**-20))


@lru_cache(maxsize=8)
def _rows(vocabulary: int, device: torch.device) -> int:
    """Return the rows of a chunk on ``device``."""
    memory = 0
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    return head_rows(vocabulary, device=device.type, memory=memory)


def _logits(
    hidden: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    softcap: float,
    room: _Room | None = None,
) -> torch.Tensor:
    logits = _product(hidden, kernel.T, room)
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
    """Return log p(target) of each row, fp32 ``[rows]``, without logits in full.

    ``hidden``: ``[rows, width]``; ``weight``: ``[vocabulary, width]``; ``targets``: ``[rows]``.
    ``scale`` multiplies the logits, then ``softcap`` c bounds them by ``c * tanh(z / c)``.
    """
    logps: torch.Tensor = _ChunkedHead.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, scale, softcap
    )
    return logps


def teach_head(model: "PreTrainedModel") -> None:
    """Let the model's head return log-probs of targets where it is given any.

    The head stays the module it is: sharding wrappers gather a module's weights around its own
    forward and nowhere else.
    """
    head = _trained(model.get_output_embeddings())
    if has_own_forward(head):
        return
    scale, softcap = _logit_transform(model.config)

    own: Callable[..., torch.Tensor] = type(head).forward

    def forward(
        self: _Head, hidden: torch.Tensor, targets: torch.Tensor | None = None
    ) -> torch.Tensor:
        if targets is None:
            return own(self, hidden)
        return target_logps(
            hidden, self.weight, targets, bias=self.bias, scale=scale, softcap=softcap
        )

    bind_forward(head, forward)


def _trained(head: nn.Module) -> nn.Module:
    """Return the copy of a head that is trained whole beside adapters, or the head itself."""
    copies = getattr(head, "modules_to_save", None)
    return copies["default"] if isinstance(copies, nn.ModuleDict) else head


def _logit_transform(config: "PretrainedConfig") -> tuple[float, float]:
    """Return the (scale, softcap) that an architecture applies to its logits before the softmax."""
    scale = 1.0
    if getattr(config, "logit_scale", None):  # Cohere
        scale *= float(config.logit_scale)
    if getattr(config, "logits_scaling", None):  # Granite
        scale /= float(config.logits_scaling)
    softcap = getattr(config, "final_logit_softcapping", None)  # Gemma 2 and 3
    softcap = softcap or getattr(config, "logits_soft_cap", None)  # RecurrentGemma
    return scale, float(softcap or 0.0)


def head_logits(model: "PreTrainedModel", states: torch.Tensor) -> Callable[[slice], torch.Tensor]:
    """Return what computes the logits of some of the hidden ``states`` ``[rows, width]``.

    It takes a slice of rows and returns fp32 ``[rows, vocabulary]``, as the softmax gets them, with
    scale and softcap. The head is cast to autocast's dtype once, for all slices.
    """
    if torch.is_autocast_enabled(states.device.type):
        states = states.to(torch.get_autocast_dtype(states.device.type))
    head = model.get_output_embeddings()
    kernel, transform = head.weight.to(states.dtype), _logit_transform(model.config)
    return lambda rows: _logits(states[rows], kernel, head.bias, *transform)
