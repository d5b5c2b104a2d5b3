"""The last block leaves out what no prediction needs, and the numbers stay what they were."""

import copy

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sdpo.config import TrainingConfig
from sdpo.model.last_block import prune
from sdpo.model.policy import add_adapters
from sdpo.model.sequence_scorer import SequenceScorer, decoder_blocks

from ..training_helpers.layouts import batch, pairs, small_model

KNOWN = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
}
OTHERS = {
    "granite": {"residual_multiplier": 0.5},
    "gemma2": {"head_dim": 8},
    "cohere2": {},
    "gpt2": {},
}


def built(name: str) -> torch.nn.Module:
    return small_model(name, num_hidden_layers=3, **(KNOWN | OTHERS)[name])


def measured(policy, layout: str):
    """Log-probs, and the gradients of a sum in which no two count the same."""
    policy.zero_grad()
    logps = SequenceScorer(policy)(batch(layout, pairs()))
    (logps * torch.linspace(1.0, -0.5, len(logps))).sum().backward()
    return logps.detach(), {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
@pytest.mark.parametrize("name", KNOWN)
def test_log_probs_and_gradients_are_those_of_the_whole_block(name, layout):
    policy = built(name)
    whole = measured(policy, layout)
    assert prune(policy)
    torch.testing.assert_close(measured(policy, layout), whole, rtol=1e-4, atol=1e-5)


def test_the_last_feed_forward_part_gets_the_tokens_that_predict_and_the_others_all():
    policy, rows = built("llama"), []
    assert prune(policy)
    for block in decoder_blocks(policy):
        block.mlp.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    made = batch("shared", pairs())
    SequenceScorer(policy)(made)
    tokens, predicting = made.input_ids.numel(), len(made.predictors)
    assert rows == [tokens, tokens, predicting]
    assert predicting < tokens


@pytest.mark.parametrize("name", OTHERS)
def test_a_block_of_another_kind_stays_as_it_is(name):
    policy = built(name)
    before = measured(policy, "padded")
    assert not prune(policy)
    assert all("forward" not in vars(block) for block in decoder_blocks(policy))
    torch.testing.assert_close(measured(policy, "padded"), before, rtol=0, atol=0)


def test_the_models_own_logits_are_of_all_tokens_as_before():
    policy = built("llama")
    ids = torch.arange(9)[None]
    before = policy(input_ids=ids, use_cache=False).logits
    assert prune(policy)
    assert torch.equal(policy(input_ids=ids, use_cache=False).logits, before)


def test_a_copy_has_a_last_block_of_its_own():
    policy = built("llama")
    assert prune(policy)
    copied = copy.deepcopy(policy)
    with torch.no_grad():
        decoder_blocks(copied)[-1].mlp.down_proj.weight.zero_()
        changed, own = (SequenceScorer(m)(batch("shared", pairs())) for m in (copied, policy))
    assert not torch.allclose(changed, own)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_with_gradient_checkpointing_the_block_is_recomputed_and_the_numbers_stay():
    found = []
    for recomputed in (False, True):
        policy = built("llama")
        assert prune(policy)
        calls: list[int] = []
        if recomputed:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
            policy.train()
        last = decoder_blocks(policy)[-1]
        last.self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        views: list[bool] = []
        last.register_forward_hook(lambda *got, views=views: views.append(got[-1]._is_view()))
        found.append(measured(policy, "shared"))
        assert not any(views), "FSDP2 warns of a block that returns a view"
        assert len(calls) == (2 if recomputed else 1)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_adapters_in_the_last_block_train_as_before():
    found = []
    for pruned in (False, True):
        policy = built("llama")
        if pruned:
            assert prune(policy)
        torch.manual_seed(4)
        policy = add_adapters(policy, TrainingConfig(lora_r=2))
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        found.append(measured(policy, "shared"))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def only_bf16(module, query, key, value, attention_mask, **options):
    """A kernel that takes what flash-attn takes. As transformers does for that, fp32 is cast to the
    dtype of autocast, and where that is off, to that of the weights."""
    if query.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(low), key.to(low), value.to(low)
    if query.dtype not in (torch.bfloat16, torch.float16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    kernel = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return kernel(module, query, key, value, attention_mask, **options)


@pytest.fixture(scope="module")
def picky_kernel():
    AttentionInterface.register("picky", only_bf16)
    AttentionMaskInterface.register("picky", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return "picky"


def test_a_kernel_that_refuses_the_trials_dtype_leaves_the_block_whole(picky_kernel):
    policy = built("llama")
    policy.set_attn_implementation(picky_kernel)
    assert not prune(policy)
    assert "forward" not in vars(decoder_blocks(policy)[-1])


def test_under_autocast_such_a_kernel_is_tried_as_it_will_train(picky_kernel):
    policy = built("llama")
    policy.set_attn_implementation(picky_kernel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prune(policy)


def test_short_memory_in_the_trial_is_no_other_kind_of_block(monkeypatch):
    policy = built("llama")

    def short(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(decoder_blocks(policy)[0].mlp, "forward", short)
    with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
        prune(policy)


def test_a_block_with_a_parameter_of_its_own_that_is_one_at_first_stays_whole():
    policy = built("llama")
    policy.model.layers[-1].scale = torch.nn.Parameter(torch.ones(()))
    assert not prune(policy)
