"""What stands in for a model's own code is that code's formula, over every number that occurs."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4MLP

from sdpo.config import ModelConfig
from sdpo.model.fused_ops import fuse, gated_mlp, rms_norm
from sdpo.model.last_block import prune
from sdpo.model.patches import has_own_forward
from sdpo.model.policy import load_policy
from sdpo.model.sequence_scorer import SequenceScorer

from ..training_helpers.layouts import batch, pairs, small_model


class Inside(nn.Module):
    """A model of one part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


def test_the_norms_backward_takes_gradients_of_other_strides():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 4, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    factor = torch.randn(2, 4, 5, 8)
    ours = torch.autograd.grad(
        (rms_norm(x, weight, 1e-6).transpose(1, 2) * factor).sum(), (x, weight)
    )
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight
    theirs = torch.autograd.grad((plain.transpose(1, 2) * factor).sum(), (x, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_gated_mlp_may_be_recomputed():
    torch.manual_seed(0)
    x = torch.randn(3, 8, requires_grad=True)
    weights = [torch.randn(*shape, requires_grad=True) for shape in ((16, 8), (16, 8), (8, 16))]
    found = []
    for forward in (gated_mlp, lambda *a: checkpoint(gated_mlp, *a, use_reentrant=False)):
        found.append(torch.autograd.grad(forward(x, *weights).square().sum(), [x, *weights]))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "exaone4", "apertus", "olmo2"])
@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_recomputation_changes_no_gradient_of_a_fused_model(kind, layout, tmp_path):
    small_model(kind, head_dim=8).save_pretrained(tmp_path)
    found = []
    for recomputed in (False, True):
        policy = load_policy(
            tmp_path, model=ModelConfig(name_or_path="x"), gradient_checkpointing=recomputed
        )
        fuse(policy)
        prune(policy)
        SequenceScorer(policy).train()(batch(layout, pairs())).sum().backward()
        found.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_a_gate_that_clamps_what_is_large_keeps_its_own_code():
    config = DeepseekV4Config(hidden_size=64, moe_intermediate_size=32, intermediate_size=32)
    part = DeepseekV4MLP(config)
    x = torch.randn(1, 8, 64) * 40
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(0, 0.2)
        before = part(x)
        assert "gate" not in fuse(Inside(part))
        torch.testing.assert_close(part(x), before, rtol=0, atol=0)


class Floored(nn.Module):
    """A norm with the names of the usual one, whose scale has an end for what is small."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.variance_epsilon = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return x * scale.clamp(max=100.0) * self.weight


def test_a_norm_with_another_formula_for_what_is_small_keeps_its_own_code():
    Floored.__name__ = "FlooredRMSNorm"
    assert fuse(Inside(Floored())) == []


@pytest.mark.parametrize("part", ["mlp", "input_layernorm"])
def test_a_part_with_a_parameter_that_changes_nothing_at_first_keeps_its_own_code(part):
    model = small_model("llama")
    module = getattr(model.model.layers[0], part)
    module.extra = nn.Parameter(torch.zeros(()))
    fuse(model)
    assert not has_own_forward(module)
    assert has_own_forward(getattr(model.model.layers[1], part))
