"""flash-attn without a GPU: kernels that refuse what its own refuse and compute what they compute.

Around them is transformers' own code.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers import modeling_flash_attention_utils as flash_utils

REFUSAL = "FlashAttention only support fp16 and bf16 data type"


def check_dtypes(*tensors: torch.Tensor) -> None:
    """Refuse what is not bf16."""
    if {tensor.dtype for tensor in tensors} != {torch.bfloat16}:
        raise RuntimeError(REFUSAL)


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    deterministic: bool = False,
) -> torch.Tensor:
    """The kernel for sequences of other lengths, ``[tokens, heads, width]``."""
    check_dtypes(q, k, v)
    for starts in (cu_seqlens_q, cu_seqlens_k):
        if starts.dtype != torch.int32 or not starts.is_contiguous():
            raise RuntimeError("cu_seqlens must have dtype int32")
    if type(max_seqlen_q) is not int or type(max_seqlen_k) is not int:
        raise TypeError("incompatible function arguments")  # and a GPU would be waited for
    assert causal
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    parts = []
    for start, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
        one = (x[None, start:end] for x in (q, k, v))
        parts.append(fixed(*one, softmax_scale=softmax_scale, causal=causal)[0])
    return torch.cat(parts)


def fixed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    deterministic: bool = False,
) -> torch.Tensor:
    """The kernel for sequences of one length, ``[sequences, tokens, heads, width]``."""
    check_dtypes(q, k, v)
    out = scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        is_causal=causal,
        scale=softmax_scale,
        enable_gqa=True,
    )
    return out.transpose(1, 2)


KERNELS = (fixed, varlen, None, flash_utils._pad_input, flash_utils._unpad_input)


def install() -> None:
    """Let transformers in this process take the stubs for the package that is not here."""
    flash_utils._lazy_imports = lambda *_, **__: KERNELS
    can: Any = lambda *_, **__: True  # noqa: E731
    PreTrainedModel._flash_attn_can_dispatch = can
