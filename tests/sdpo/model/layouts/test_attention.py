"""Attention by segments on a CPU: its sums."""

import numpy as np
import pytest
import torch

from sdpo.model.layouts import LAYOUTS, PromptGroup
from sdpo.model.layouts.attention import _on_cpu, _through_autograd


@pytest.mark.parametrize("groups", [2, 4])
def test_gradients_in_bf16_are_computed_and_summed_over_the_blocks_in_fp32(groups):
    rng, heads, width = np.random.default_rng(0), 4, 16
    torch.manual_seed(0)
    prompt, *sides = (rng.integers(0, 60, n).astype(np.int32) for n in (64, 1500, 1500))
    pair = PromptGroup(prompt, tuple(sides))
    row = LAYOUTS["shared"].collate([pair], pad_token_id=0, device="cpu")
    tokens = row.input_ids.numel()
    query = torch.randn(1, heads, tokens, width).bfloat16()
    key, value = (torch.randn(1, groups, tokens, width).bfloat16() for _ in range(2))
    gradient = torch.randn(1, tokens, heads, width).bfloat16()

    low = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    _on_cpu(*low, row.segments, 0.25, 0.0, None).backward(gradient)
    exact = [tensor.double().requires_grad_() for tensor in (query, key, value)]
    masks = row.segments.masks(None, torch.float64)
    _through_autograd(*exact, row.segments, masks, 0.25, 0.0).backward(gradient.double())
    for ours, theirs in zip(low, exact, strict=True):
        assert ours.grad.dtype == torch.bfloat16
        apart = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert apart < 0.002, "0.0017 by rounding the result; 0.003 by the kernel for bf16"
