"""What is taken for rounding is rounding: a fault of a thousandth of a nat is seen in fp32."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from sdpo.config import ModelConfig
from sdpo.errors import ModelError
from sdpo.model.policy import load_policy
from sdpo.model.prepare import prepare
from sdpo.model.randomness import check_training_mode, switch_off
from sdpo.model.rounding import allowed
from sdpo.model.sequence_scorer import SequenceScorer, TokenSequence, collate

from ..training_helpers.layouts import VOCABULARY, small_model

CPU = torch.device("cpu")
FAULT = 1e-3
KINDS = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "cohere": {"logit_scale": 4.0},
    "mixtral": {"num_local_experts": 4},
    "granite": {"logits_scaling": 0.5, "residual_multiplier": 0.7},
}


def faulty_by(change, measured) -> float:
    """The size of ``change`` that moves what is ``measured`` by a thousandth of a nat."""
    with torch.no_grad():
        change(0.0)
        plain = measured()
        change(1e-2)
        return 1e-2 * FAULT / abs(measured() - plain)


def own_logp(model) -> float:
    """Of the tokens that the head is tried on, by the model's own logits."""
    ids = torch.arange(8)[None] * 7 % VOCABULARY
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
    return float(logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_logits_that_are_off_by_a_thousandth_of_a_nat_are_refused(kind):
    model = small_model(kind, **KINDS[kind])
    own, louder = type(model).forward, [0.0]

    def forward(*args, **options):
        answer = own(model, *args, **options)
        answer.logits = answer.logits * (1 + louder[0])
        return answer

    model.forward = forward
    size = faulty_by(lambda by: louder.__setitem__(0, by), lambda: own_logp(model))
    scorer = SequenceScorer(model)
    louder[0] = 0.0
    scorer.check_head(vocabulary=VOCABULARY, device=CPU)
    louder[0] = size
    with pytest.raises(ModelError, match="treats its logits in a way that is not known"):
        scorer.check_head(vocabulary=VOCABULARY, device=CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_off_by_a_thousandth_of_a_nat_in_training_is_refused(kind):
    model = small_model(kind, **KINDS[kind])
    switch_off(model)
    louder = [0.0]

    def hook(module, inputs, found):
        return found * (1 + louder[0]) if module.training else found

    last = [norm for norm in model.get_decoder().children() if "Norm" in type(norm).__name__][-1]
    last.register_forward_hook(hook)
    scorer = SequenceScorer(model)
    size = faulty_by(lambda by: louder.__setitem__(0, by), lambda: trained_logp(scorer))
    louder[0] = 0.0
    check_training_mode(scorer, device=CPU)
    louder[0] = size
    with pytest.raises(ModelError, match="is another model in training"):
        check_training_mode(scorer, device=CPU)


def trained_logp(scorer: SequenceScorer) -> float:
    """Of the tokens that train mode is tried on."""
    ids = np.arange(64, dtype=np.int32) * 7 % VOCABULARY
    found = float(scorer.train()(collate([TokenSequence(ids, 1)], pad_token_id=0))[0])
    scorer.eval()
    return found


def test_experts_that_are_drawn_are_seen_in_bf16_too(tmp_path):
    small_model("phimoe", num_local_experts=4, sliding_window=None).save_pretrained(tmp_path)
    policy = load_policy(tmp_path, model=ModelConfig())
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ModelError, match="PhimoeForCausalLM is another model in training"),
    ):
        check_training_mode(SequenceScorer(policy), device=CPU)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "size", [{}, {"hidden_size": 256, "num_hidden_layers": 12, "vocab_size": 5000}]
)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral"])
def test_rounding_is_not_taken_for_a_fault(kind, size, precision, tmp_path):
    small_model(kind, **KINDS.get(kind, {}), **size).save_pretrained(tmp_path)
    policy = load_policy(tmp_path, model=ModelConfig(attention="eager"), recomputed="blocks")
    low = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    with low:
        prepare(policy, device=CPU)


def test_what_is_allowed_grows_with_the_numbers_and_with_the_root_of_the_tokens():
    assert allowed(8.0, low=False) == 4 * allowed(2.0, low=False)
    assert allowed(1.0, low=False) < 1e-5
    assert 1e-2 < allowed(1.0, low=True) < 0.05
