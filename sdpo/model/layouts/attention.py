"""Attend in rows of several sequences: the attention function that models use there.

It is registered with transformers' attention interface, so any architecture that takes its
attention from there can use the shared and packed layouts. On a GPU it is FlexAttention; on a CPU
it is the fused kernel of torch, block by block, with its own backward: slices through autograd
would make and add a full-length gradient for each of them.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from sdpo.errors import LayoutError
from sdpo.model.kinds import Context, Gradients, Option
from sdpo.model.layouts.segment import Segment
from sdpo.model.layouts.segments import Segments
from sdpo.model.patches import more_graphs

NAME = "sdpo_segments"

_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_KERNEL_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_MOST_GRAPHS = 64
_UNKNOWN = ("softcap", "s_aux", "position_bias", "block_indices", "indices")
"""Some architectures add these to attention; this module does not support them."""


# Under torch.compile the blocks around attention are compiled, attention is not: the segments of
# every micro-batch are others. On a GPU it has its own compiled kernel, so what it calls may be.
@torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
def segmented_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Option,
) -> tuple[torch.Tensor, None]:
    """Attend with ``query`` ``[1, heads, tokens, width]`` as ``segments`` say.

    Returns ``[1, tokens, heads, width]``, as transformers' attention functions do.

    Raises:
        LayoutError: the architecture asks for something that is not done here.
    """
    if segments is None or attention_mask is not None:
        raise LayoutError(f"{type(module).__name__} does not hand its attention the segments")
    for name in _UNKNOWN:
        if options.get(name) is not None:
            raise LayoutError(f"{type(module).__name__} wants attention with {name}")
    query, key, value = _one_dtype(query, key, value)
    if query.device.type == "cuda":
        out = _flex(query, key, value, segments, scaling, sliding_window)
        return out.transpose(1, 2).contiguous(), None
    return _on_cpu(query, key, value, segments, scaling, dropout, sliding_window), None


def _one_dtype(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors in autocast's dtype where it is on, as torch's own kernels take them.

    Rotary embedding leaves queries and keys in fp32 beside values in bf16.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if dropout == 0.0 and query.shape[-1] == value.shape[-1]:
        out: torch.Tensor = _SegmentedAttention.apply(  # type: ignore[no-untyped-call]
            query, key, value, segments, window, scale
        )
        return out
    masks = segments.masks(window, query.dtype)
    return _through_autograd(query, key, value, segments, masks, scale, dropout)


class _Context(Context, Protocol):
    """A context has what the backward pass needs beside tensors."""

    plan: tuple[Segments, int | None, float]


class _SegmentedAttention(torch.autograd.Function):
    """Attention is fused per segment; gradients are added up in one buffer per input."""

    @staticmethod
    def forward(
        ctx: _Context,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        segments: Segments,
        window: int | None,
        scale: float,
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        out = query.new_empty(1, tokens, heads, width)
        sums: list[torch.Tensor] = []
        masks = segments.masks(window, query.dtype)
        for segment, mask in zip(segments.parts, masks, strict=True):
            q, k, v = _slices(query, key, value, segment)
            part, lse = _KERNEL(q, k, v, 0.0, mask is None, attn_mask=mask, scale=scale)
            _heads(out, segment.first, segment.last, k.shape[0]).copy_(part)
            sums.append(lse)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.plan = (segments, window, scale)
        return out

    @staticmethod
    def backward(ctx: _Context, *gradients: torch.Tensor) -> Gradients:
        query, key, value, out, *sums = ctx.saved_tensors  # recomputation lets them be read once
        dtype = query.dtype
        # Torch's backward kernel for bf16 is slower than the one for fp32, which is exact besides:
        # it allocates in every thread, which waits for the others where they share one arena.
        exact = torch.promote_types(dtype, torch.float32)
        query, key, value, out = (t.to(exact) for t in (query, key, value, out))
        segments, window, scale = ctx.plan
        masks = segments.masks(window, exact)
        gradient = gradients[0].to(exact)
        grouped = query.shape[1] != key.shape[1]
        # Laid out [1, tokens, heads, width], as the projections want their gradients.
        dq = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        # A prompt's keys get a sum over the blocks of all that see them: not one in bf16.
        dk, dv = (torch.zeros_like(t.transpose(1, 2)).transpose(1, 2) for t in (key, value))
        for segment, mask, lse in zip(segments.parts, masks, sums, strict=True):
            q, k, v = _slices(query, key, value, segment)
            groups = k.shape[0]
            gq, gk, gv = _KERNEL_BACKWARD(
                _heads(gradient, segment.first, segment.last, groups),
                *(q, k, v),
                _heads(out, segment.first, segment.last, groups),
                *(lse, 0.0, mask is None),
                attn_mask=mask,
                scale=scale,
            )
            shape = (1, -1, *q.shape[2:])
            dq[:, :, segment.first : segment.last] = gq.reshape(shape)
            keys = slice(segment.first_key, segment.last_key)
            for total, part in ((dk, gk), (dv, gv)):
                total[:, :, keys] += part.sum(1)[None] if grouped else part
        return dq.to(dtype), dk.to(dtype), dv.to(dtype), None, None, None


def _slices(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segment: Segment
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values of a segment; with grouped heads a group is a batch entry.

    Shapes are ``[1, heads, q, w]``, or ``[groups, heads / groups, q, w]`` with keys repeated by a
    stride of 0.
    """
    q = query[:, :, segment.first : segment.last]
    k, v = (t[:, :, segment.first_key : segment.last_key] for t in (key, value))
    heads, groups = q.shape[1], k.shape[1]
    if heads == groups:
        return q, k, v
    share = heads // groups
    k, v = (t[0][:, None].expand(groups, share, *t.shape[2:]) for t in (k, v))
    return q[0].view(groups, share, *q.shape[2:]), k, v


def _heads(rows: torch.Tensor, first: int, last: int, groups: int) -> torch.Tensor:
    """Return rows ``[1, tokens, heads, width]`` of a segment, heads as :func:`_slices` has them."""
    heads = rows[0, first:last].transpose(0, 1)
    return heads.view(groups, -1, *heads.shape[1:])


def _through_autograd(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    masks: Sequence[torch.Tensor | None],
    scale: float,
    dropout: float,
) -> torch.Tensor:
    parts: list[tuple[int, torch.Tensor]] = []
    for segment, mask in zip(segments.parts, masks, strict=True):
        keys = slice(segment.first_key, segment.last_key)
        out = functional.scaled_dot_product_attention(
            query[:, :, segment.first : segment.last],
            key[:, :, keys],
            value[:, :, keys],
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts.append((segment.first, out.transpose(1, 2)))
    return torch.cat([out for _, out in sorted(parts, key=lambda part: part[0])], dim=1)


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    with more_graphs(_MOST_GRAPHS):
        out: torch.Tensor = _compiled_flex()(
            query,
            key,
            value,
            block_mask=segments.block_mask(window),
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return out


@lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., torch.Tensor]:
    """Return FlexAttention as one compiled kernel.

    The whole call is one graph or an error: past its limit of graphs torch would go on without
    compiling, which makes the scores of all tokens with all tokens. Lengths are dynamic, so graphs
    are few (gradients, grouped heads, windows, dtypes), but there may be more than torch's limit of
    8.
    """
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., torch.Tensor] = torch.compile(
        flex_attention, dynamic=True, fullgraph=True
    )
    return compiled


def register() -> None:
    """Make the function known to transformers under :data:`NAME`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, segmented_attention)
