"""What stands in for a model's own code is that code's formula, over every number that occurs."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4MLP

from benchmarks.small_models import small_model as tiny_one
from sdpo.config import ModelConfig, TrainingConfig
from sdpo.model.fused_ops import fuse, gated_mlp, rms_norm, rotate, silu_gate
from sdpo.model.last_block import prune
from sdpo.model.patches import has_own_forward
from sdpo.model.policy import add_adapters, load_policy
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


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_rotary_function_that_is_called_without_keys_rotates_as_it_did():
    model = tiny_one("qwen4_exp_text")  # its index of keys rotates queries alone
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        assert "rotary" in fuse(model)
        after = model(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "exaone4", "apertus", "olmo2"])
@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_recomputation_changes_no_gradient_of_a_fused_model(kind, layout, tmp_path):
    small_model(kind, head_dim=8).save_pretrained(tmp_path)
    found = []
    for recomputed in (None, "blocks", "selective"):
        policy = load_policy(tmp_path, model=ModelConfig(name_or_path="x"), recomputed=recomputed)
        fuse(policy)
        prune(policy)
        SequenceScorer(policy).train()(batch(layout, pairs())).sum().backward()
        found.append({n: p.grad for n, p in policy.named_parameters() if p.grad is not None})
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-5)


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


FORMULAS = {
    "llama": {},  # norm, gate, rotary
    "qwen3": {"head_dim": 8},  # norms on heads, whose gradients have other strides
    "exaone4": {},
    "olmo2": {},
    "cohere": {"logit_scale": 1.0},  # a gate beside norms of another kind
    "apertus": {},
}
SIZES = [1e-3, 1.0, 30.0]
"""Of the embeddings: what comes into the first block, and so the numbers of all of them."""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("setting", ["whole", "adapters", "recomputed", "bf16"])
@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_a_fused_model_has_the_log_probs_and_gradients_of_transformers_own_code(
    kind, setting, size, tmp_path
):
    model = small_model(kind, **FORMULAS[kind])
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(size)
    model.save_pretrained(tmp_path)
    found = []
    for fused in (False, True):
        recomputed = "blocks" if setting == "recomputed" else None
        policy = load_policy(tmp_path, model=ModelConfig(), recomputed=recomputed)
        if fused:
            assert fuse(policy)
        if setting == "adapters":
            torch.manual_seed(0)
            policy = add_adapters(policy, TrainingConfig(lora_r=4))
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        scorer = SequenceScorer(policy).train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting == "bf16"):
            logps = scorer(batch("padded", pairs()))
        (logps * torch.linspace(1, -0.5, len(logps))).sum().backward()
        gradients = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
        found.append((logps.detach(), gradients))
    (own_logps, own), (fused_logps, ours) = found
    torch.testing.assert_close(fused_logps, own_logps, rtol=1e-5, atol=1e-4)
    assert ours.keys() == own.keys()
    largest = max(float(gradient.norm()) for gradient in own.values())
    assert largest > 1e-3, "there are gradients to compare"
    for name, gradient in own.items():
        distance = float((ours[name] - gradient).norm())
        assert distance <= 1e-4 * float(gradient.norm()) + 1e-6 * largest, name


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 1e2, 1e4])
def test_every_function_has_its_formulas_gradients_over_all_sizes_and_strides(size):
    """In fp32 against plain operations in float64, for gradients that are transposed views."""
    torch.manual_seed(0)
    x, weight = size * torch.randn(2, 3, 4, 8), torch.randn(8)
    other, angle = size * torch.randn(2, 3, 4, 8), torch.rand(1, 1, 4, 8)
    gate, up, down = torch.randn(6, 8) / size, torch.randn(6, 8), torch.randn(8, 6)

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight

    def silu(x):
        return x * torch.sigmoid(x)

    def rotated(x):
        cos, sin = angle.to(x.dtype).cos(), angle.to(x.dtype).sin()
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    cases = [
        (lambda x, w: rms_norm(x, w, 1e-6), norm, (x, weight)),
        (silu_gate, lambda x, y: silu(x) * y, (x, other)),
        (
            gated_mlp,
            lambda x, g, u, d: (silu(x @ g.T) * (x @ u.T)) @ d.T,
            (x, gate, up, down),
        ),
        (lambda x: rotate(x, angle.cos(), angle.sin()), rotated, (x,)),
    ]
    for ours, theirs, inputs in cases:
        results = []
        for function, dtype in ((ours, torch.float32), (theirs, torch.float64)):
            given = [each.to(dtype).requires_grad_() for each in inputs]
            value = function(*given)
            factor = torch.linspace(-1, 1, value.numel()).view(*value.shape).to(dtype)
            viewed = value.transpose(1, 2)
            gradients = torch.autograd.grad((viewed * factor.transpose(1, 2)).sum(), given)
            results.append([value.detach(), *gradients])
        for mine, exact in zip(*results, strict=True):
            scale = float(exact.abs().max())
            torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=2e-6 * scale)
