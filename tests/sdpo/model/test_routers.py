"""The routers' load-balancing loss is transformers' own on padded rows, in every layout."""

import numpy as np
import pytest
import torch

from benchmarks.small_models import small_model as made_small
from sdpo.config import ModelConfig
from sdpo.errors import ModelError
from sdpo.model.layouts import PromptGroup
from sdpo.model.policy import load_policy
from sdpo.model.prepare import prepare
from sdpo.model.routers import asked_weight, balance_loss, check_routers, has_routers
from sdpo.model.sequence_scorer import SequenceScorer, plain_attention

from ..training_helpers.layouts import batch, pairs, small_model

CPU = torch.device("cpu")
MIXTURES = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 3},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2},
}


def loaded(tmp_path, kind: str, **settings):
    small_model(kind, **(MIXTURES.get(kind, {}) | settings)).save_pretrained(tmp_path)
    policy = load_policy(tmp_path, model=ModelConfig(attention="sdpa"))
    prepare(policy, device=CPU)
    return policy.eval()


def exact_loss(policy, groups: list[PromptGroup]) -> torch.Tensor:
    """The loss in float64, from the routers' logits of every sequence alone."""
    plain_attention(policy)
    layers = []
    for group in groups:
        for side in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, side]).astype(np.int64))
            found = policy(input_ids=ids[None], use_cache=False, output_router_logits=True)
            layers.append(torch.cat([each.flatten(0, -2) for each in found.router_logits]))
    logits = torch.cat(layers).double()
    probabilities = logits.softmax(-1)
    chosen = torch.zeros_like(logits).scatter(
        1, logits.topk(policy.num_experts_per_tok, -1).indices, 1.0
    )
    return logits.shape[1] * (chosen.mean(0) * probabilities.mean(0)).sum()


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_the_loss_and_its_gradients_are_those_of_every_sequence_alone(kind, layout, tmp_path):
    policy, groups = loaded(tmp_path, kind), pairs()
    trained = [p for p in policy.parameters() if p.requires_grad]
    logps, load = SequenceScorer(policy)(batch(layout, groups), routers=True)
    ours = balance_loss(load)
    theirs = exact_loss(policy, groups)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    found = torch.autograd.grad(ours, trained, allow_unused=True)
    expected = torch.autograd.grad(theirs, trained, allow_unused=True)
    size = max(float(part.abs().max()) for part in expected if part is not None)
    assert size > 1e-4, "the loss has a gradient, so that the comparison means something"
    for mine, theirs_of in zip(found, expected, strict=True):
        assert (mine is None) == (theirs_of is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs_of, rtol=1e-3, atol=1e-5 * size)
    plain = SequenceScorer(policy)(batch(layout, groups))
    torch.testing.assert_close(logps, plain, rtol=1e-5, atol=1e-4)


def test_the_loss_is_what_transformers_adds_on_padded_rows(tmp_path):
    policy, rows = loaded(tmp_path, "qwen2_moe"), batch("padded", pairs())
    assert rows.attention_mask is not None, "there is padding"
    own = policy(
        input_ids=rows.input_ids,
        attention_mask=rows.attention_mask,
        use_cache=False,
        output_router_logits=True,
    ).aux_loss
    _, load = SequenceScorer(policy)(rows, routers=True)
    assert balance_loss(load).item() == pytest.approx(own.item(), rel=1e-5)


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
def test_parts_of_a_batch_add_up_to_the_loss_of_the_whole(layout, tmp_path):
    scorer, groups = SequenceScorer(loaded(tmp_path, "mixtral")), pairs(5)
    _, whole = scorer(batch(layout, groups), routers=True)
    loads = [scorer(batch(layout, part), routers=True)[1] for part in (groups[:2], groups[2:])]
    together = sum(loads).detach()
    torch.testing.assert_close(together, whole.detach(), rtol=1e-5, atol=1e-4)
    parts = [balance_loss(load, whole=together).item() for load in loads]
    assert sum(parts) == pytest.approx(balance_loss(whole).item(), rel=1e-6)


def test_the_weight_that_a_model_states_is_known(tmp_path):
    assert asked_weight(small_model("mixtral", router_aux_loss_coef=0.02)) == 0.02
    assert has_routers(small_model("mixtral"))
    assert asked_weight(small_model("llama")) == 0
    assert not has_routers(small_model("llama"))


def test_a_model_without_routers_is_refused(tmp_path):
    policy = loaded(tmp_path, "llama")
    with pytest.raises(ModelError, match=r"LlamaForCausalLM .*no mixture of experts"):
        check_routers(SequenceScorer(policy), policy, device=CPU)


def test_a_mixture_whose_layers_are_all_dense_is_refused(tmp_path):
    policy = loaded(tmp_path, "qwen3_moe", mlp_only_layers=[0, 1])
    with pytest.raises(ModelError, match="none of its layers has a router"):
        check_routers(SequenceScorer(policy), policy, device=CPU)


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe", "hunyuan_v1_moe", "zaya"])
def test_a_mixture_that_is_balanced_without_a_loss_is_refused(name):
    policy = made_small(name)
    assert has_routers(policy), "it puts out its routers' logits all the same"
    prepare(policy, device=CPU)
    with pytest.raises(ModelError, match=r"ForCausalLM .*its own code makes no such loss"):
        check_routers(SequenceScorer(policy), policy, device=CPU)


def test_a_model_that_makes_another_loss_is_refused(tmp_path):
    policy = loaded(tmp_path, "mixtral")
    check_routers(SequenceScorer(policy), policy, device=CPU)
    own = type(policy).forward

    def other(*args, **options):
        answer = own(policy, *args, **options)
        answer.aux_loss = None if answer.aux_loss is None else 1.001 * answer.aux_loss
        return answer

    policy.forward = other
    with pytest.raises(ModelError, match="its own code makes another one"):
        check_routers(SequenceScorer(policy), policy, device=CPU)
