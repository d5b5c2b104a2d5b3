"""The last block leaves out what no prediction needs, and the numbers stay what they were."""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sdpo.config import TrainingConfig
from sdpo.last_block import prune
from sdpo.layouts import LAYOUTS, PromptGroup
from sdpo.logps import SequenceScorer, decoder_blocks
from sdpo.policy import add_adapters

VOCABULARY = 61
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
KNOWN = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=7)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)),
}
OTHERS = {
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, residual_multiplier=0.5)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8)),
    "cohere2": lambda: Cohere2ForCausalLM(Cohere2Config(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4)
    ),
}


def built(make) -> torch.nn.Module:
    torch.manual_seed(3)
    return make().eval()


def pairs(count: int = 3) -> list[PromptGroup]:
    rng = np.random.default_rng(5)

    def ids() -> np.ndarray:
        return rng.integers(0, VOCABULARY, int(rng.integers(1, 15))).astype(np.int32)

    return [PromptGroup(ids(), (ids(), ids())) for _ in range(count)]


def batch(layout: str):
    return LAYOUTS[layout].collate(pairs(), pad_token_id=0, device="cpu")


def measured(policy, layout: str):
    """Log-probs, and the gradients of a sum in which no two count the same."""
    policy.zero_grad()
    logps = SequenceScorer(policy)(batch(layout))
    (logps * torch.linspace(1.0, -0.5, len(logps))).sum().backward()
    return logps.detach(), {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
@pytest.mark.parametrize("name", KNOWN)
def test_log_probs_and_gradients_are_those_of_the_whole_block(name, layout):
    policy = built(KNOWN[name])
    whole = measured(policy, layout)
    assert prune(policy)
    torch.testing.assert_close(measured(policy, layout), whole, rtol=1e-4, atol=1e-5)


def test_the_last_feed_forward_part_gets_the_tokens_that_predict_and_the_others_all():
    policy, rows = built(KNOWN["llama"]), []
    assert prune(policy)
    for block in decoder_blocks(policy):
        block.mlp.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[1]))
    made = batch("shared")
    SequenceScorer(policy)(made)
    tokens, predicting = made.input_ids.numel(), len(made.predictors)
    assert rows == [tokens, tokens, predicting]
    assert predicting < tokens


@pytest.mark.parametrize("name", OTHERS)
def test_a_block_of_another_kind_stays_as_it_is(name):
    policy = built(OTHERS[name])
    before = measured(policy, "padded")
    assert not prune(policy)
    assert all("forward" not in vars(block) for block in decoder_blocks(policy))
    torch.testing.assert_close(measured(policy, "padded"), before, rtol=0, atol=0)


def test_the_models_own_logits_are_of_all_tokens_as_before():
    policy = built(KNOWN["llama"])
    ids = torch.arange(9)[None]
    before = policy(input_ids=ids, use_cache=False).logits
    assert prune(policy)
    assert torch.equal(policy(input_ids=ids, use_cache=False).logits, before)


def test_a_copy_has_a_last_block_of_its_own():
    policy = built(KNOWN["llama"])
    assert prune(policy)
    copied = copy.deepcopy(policy)
    with torch.no_grad():
        decoder_blocks(copied)[-1].mlp.down_proj.weight.zero_()
        changed, own = (SequenceScorer(m)(batch("shared")) for m in (copied, policy))
    assert not torch.allclose(changed, own)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_with_gradient_checkpointing_the_block_is_recomputed_and_the_numbers_stay():
    found = []
    for recomputed in (False, True):
        policy = built(KNOWN["llama"])
        assert prune(policy)
        calls: list[int] = []
        if recomputed:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
            policy.train()
        last = decoder_blocks(policy)[-1]
        last.self_attn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        found.append(measured(policy, "shared"))
        assert len(calls) == (2 if recomputed else 1)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_adapters_in_the_last_block_train_as_before():
    found = []
    for pruned in (False, True):
        policy = built(KNOWN["llama"])
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
