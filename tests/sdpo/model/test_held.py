"""A base that is held in fewer bits is the model with its weights rounded, and nothing else."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.small_models import small_model
from sdpo.config import ModelConfig, TrainingConfig
from sdpo.errors import ModelError
from sdpo.model.handed_on import adapter_tensors, save_adapter
from sdpo.model.held import HeldLinear, hold_base, let_go
from sdpo.model.policy import load_policy, merge_adapters
from sdpo.model.prepare import prepare

from ..training_helpers.adapted import logps, with_trained_adapters

KINDS = ["bf16", "int8", "nf4"]
BYTES = {"bf16": 2, "int8": 1 + 4 / 64, "nf4": 0.5 + 4 / 64}
# QLoRA, arXiv 2305.14314, appendix E.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _bitsandbytes(request: pytest.FixtureRequest) -> None:
    kind = getattr(getattr(request.node, "callspec", None), "params", {}).get("kind")
    if kind in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes", reason="the extra `quantisation` is not installed")


def rounded(weight: np.ndarray, kind: str) -> np.ndarray:
    """What the papers say of a weight, ``[out, in]``, in numpy."""
    if kind == "bf16":
        return torch.from_numpy(weight).bfloat16().float().numpy()
    if kind == "int8":
        low = weight.astype(np.float16).astype(np.float64)
        scale = np.abs(low).max(axis=1, keepdims=True) / 127
        return np.round(low / scale) * scale
    blocks = weight.reshape(-1, 64)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = np.abs((blocks / scale)[..., None] - NF4).argmin(axis=-1)
    return (NF4[nearest] * scale).reshape(weight.shape)


def exact() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(64, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_rounded_as_the_papers_say(kind) -> None:
    layer = exact()
    model = small_model("llama")
    model.model.layers[0].self_attn.q_proj = layer
    held = hold_base(model, kind).model.layers[0].self_attn.q_proj
    assert isinstance(held, HeldLinear)
    expected = rounded(layer.weight.detach().numpy(), kind)
    np.testing.assert_allclose(held.weight.numpy(), expected, rtol=0, atol=2e-4)
    assert (held.weight - layer.weight).abs().max() > 1e-5
    kept = sum(p.numel() * p.element_size() for n, p in held.named_parameters() if n != "bias")
    assert kept <= BYTES[kind] * layer.weight.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_its_product_and_gradient_are_those_of_the_rounded_weight(kind) -> None:
    model = small_model("llama")
    model.model.layers[0].self_attn.q_proj = exact()
    held = hold_base(model, kind).model.layers[0].self_attn.q_proj
    plain = nn.Linear(64, 32)
    plain.load_state_dict({"weight": held.weight, "bias": held.bias})
    x = torch.randn(2, 5, 64, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    held(x).square().sum().backward()
    plain(other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    assert all(p.grad is None for n, p in held.named_parameters() if n != "bias")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert held(x).dtype == plain(x).dtype == torch.bfloat16
        torch.testing.assert_close(held(x), plain(x), rtol=2e-2, atol=2e-2)


def trained(name: str, kind: str, **settings):
    model = hold_base(small_model(name), kind)
    prepare(model, device=torch.device("cpu"))
    return with_trained_adapters(model, TrainingConfig(lora_r=4, lora_alpha=8, **settings))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_an_adapter_over_it_is_published_loaded_and_merged_as_what_was_trained(
    kind, dora, tmp_path
) -> None:
    base, out = tmp_path / "base", tmp_path / "adapter"
    small_model("llama").save_pretrained(base)
    adapted = trained("llama", kind, lora_dora=dora)
    out.mkdir()
    save_adapter(adapted, out, tensors=adapter_tensors(adapted), input_model=base, precision=kind)
    with torch.no_grad():
        expected = logps(adapted)
        settings = ModelConfig(base_precision=kind)
        policy = load_policy(out, model=settings)
        prepare(policy, device=torch.device("cpu"))
        torch.testing.assert_close(logps(policy), expected, rtol=0, atol=0)
        # Plain peft, over the rounded weights as plain fp32 ones.
        rounded_base = let_go_of(hold_base(small_model("llama"), kind))
        plain = PeftModel.from_pretrained(rounded_base, out)
        torch.testing.assert_close(logps(plain), expected, rtol=1e-5, atol=1e-3)
        exact_base = PeftModel.from_pretrained(small_model("llama"), out)
        assert (logps(exact_base) - expected).abs().max() > 1e-3, "over S it is another model"
        torch.testing.assert_close(logps(merge_adapters(adapted)), expected, rtol=1e-5, atol=1e-3)
    with pytest.raises(ModelError, match=rf"a base in {kind}, and model.base_precision is fp32"):
        load_policy(out, model=ModelConfig())


def let_go_of(model):
    let_go(model)
    assert not any(isinstance(module, HeldLinear) for module in model.modules())
    return model


def test_nf4_is_what_transformers_makes_with_bitsandbytes(tmp_path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `quantisation` is not installed")
    from transformers import BitsAndBytesConfig

    small_model("llama").save_pretrained(tmp_path / "base")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base",
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        dtype=torch.float32,
        device_map={"": "cpu"},
    )
    ours = hold_base(small_model("llama"), "nf4")
    with torch.no_grad():
        torch.testing.assert_close(logps(ours), logps(theirs), rtol=0, atol=1e-4)


def test_the_head_the_embedding_and_the_norms_stay_as_they_are() -> None:
    model = small_model("llama")
    before = copy.deepcopy(model)
    held = hold_base(model, "bf16")
    for name in ("lm_head", "model.embed_tokens", "model.norm"):
        assert torch.equal(held.get_submodule(name).weight, before.get_submodule(name).weight)
    assert not any(parameter.requires_grad for parameter in held.parameters())


def test_a_model_without_layers_that_can_be_held_is_refused() -> None:
    with pytest.raises(ModelError, match=r"base_precision: .* has no linear layers"):
        hold_base(small_model("gpt2"), "bf16")
