import numpy as np
import pytest
import torch
from torch import nn

from sdpo.config import ModelConfig, TrainingConfig
from sdpo.errors import ModelError
from sdpo.model.policy import add_adapters, load_policy, save_policy
from sdpo.model.randomness import check_training_mode, draws_at_random
from sdpo.model.sequence_scorer import SequenceScorer

from ..training_helpers.layouts import batch, pairs, small_model
from ..training_helpers.models import tiny_llama

RANDOM = {
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3, "alibi": False},
    "mixtral": {"router_jitter_noise": 0.3, "num_local_experts": 4, "attention_dropout": 0.2},
    "gpt_neo": {
        "attention_types": [[["global"], 2]],
        "num_layers": 2,
        "num_heads": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_dropout": 0.2,
        "embed_dropout": 0.2,
        "resid_dropout": 0.2,
    },
    "persimmon": {"attention_dropout": 0.2, "hidden_dropout": 0.2},
}
"""Kinds of randomness: rates of modules, rates that a configuration has, a router's jitter."""


def stored(tmp_path, kind: str, **settings):
    small_model(kind, **settings).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", RANDOM)
def test_what_a_model_draws_by_itself_is_switched_off_and_published_as_it_was(kind, tmp_path):
    folder = stored(tmp_path, kind, **RANDOM[kind])
    policy = load_policy(folder, model=ModelConfig(attention="eager"))
    scorer, device = SequenceScorer(policy), torch.device("cpu")
    check_training_mode(scorer, device=device)
    groups = pairs()
    alone = scorer.eval()(batch("padded", groups))
    for _ in range(3):
        torch.testing.assert_close(scorer.train()(batch("padded", groups)), alone, rtol=0, atol=0)
    (folder / "again").mkdir()
    save_policy(policy, folder / "again", tokenizer=folder)
    assert (folder / "again/config.json").read_text() == (folder / "config.json").read_text()
    assert scorer.train()(batch("padded", groups)).equal(alone), "still off after it was published"


def test_the_rates_of_this_test_are_what_would_be_random(tmp_path):
    model = small_model("falcon", **RANDOM["falcon"])
    scorer, groups = SequenceScorer(model), pairs()
    assert not scorer.train()(batch("padded", groups)).equal(scorer(batch("padded", groups)))


def test_a_router_that_samples_its_experts_in_training_is_refused(tmp_path):
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    policy = load_policy(stored(tmp_path, "phimoe", **settings), model=ModelConfig())
    before = torch.get_rng_state()
    with pytest.raises(ModelError, match="PhimoeForCausalLM is another model in training"):
        check_training_mode(SequenceScorer(policy), device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_jitter_that_is_read_as_a_threshold_stays(tmp_path):
    """PhiMoE's routers leave out experts by it, in evaluation as well."""
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_jitter_noise": 0.3}
    folder = stored(tmp_path, "phimoe", **settings)
    policy = load_policy(folder, model=ModelConfig()).eval()
    own = small_model("phimoe", **settings)
    ids = torch.from_numpy(np.arange(9))[None]
    with torch.no_grad():
        torch.testing.assert_close(policy(input_ids=ids).logits, own(input_ids=ids).logits)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_dropout_of_the_model_or_of_adapters_is_random_and_nothing_else_of_a_llama():
    assert not draws_at_random(tiny_llama())
    assert draws_at_random(tiny_llama(attention_dropout=0.1))
    assert draws_at_random(nn.Sequential(nn.Dropout(0.1)))
    assert not draws_at_random(nn.Sequential(nn.Dropout(0.0)))
    adapters = TrainingConfig(lora_r=2)
    assert not draws_at_random(add_adapters(tiny_llama(), adapters))
    with_dropout = adapters.model_copy(update={"lora_dropout": 0.1})
    assert draws_at_random(add_adapters(tiny_llama(), with_dropout))


def test_routers_put_nothing_out_while_the_model_is_here(tmp_path):
    settings = {"output_router_logits": True, "router_aux_loss_coef": 0.02}
    folder = stored(tmp_path, "mixtral", num_local_experts=4, **settings)
    policy = load_policy(folder, model=ModelConfig())
    ids = torch.arange(3, 9).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    found = policy.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    assert found.shape[1] > ids.shape[1]
    (folder / "again").mkdir()
    save_policy(policy, folder / "again", tokenizer=folder)
    assert (folder / "again/config.json").read_text() == (folder / "config.json").read_text()
