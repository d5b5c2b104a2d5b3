"""Adapters stand where merging them makes the model that was trained, and are refused elsewhere."""

import pytest
import torch

from benchmarks.small_models import small_model
from sdpo.config import TrainingConfig
from sdpo.errors import ConfigError
from sdpo.model.policy import add_adapters, merge_adapters
from sdpo.model.prepare import prepare
from sdpo.model.randomness import switch_off
from sdpo.model.sequence_scorer import SequenceScorer

from ..training_helpers.layouts import batch, pairs

LORA = TrainingConfig(lora_r=4, lora_alpha=8)

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    # Of peft, about names of experts that it has found in the model itself.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match"),
]


def trained(name: str, training: TrainingConfig = LORA):
    """The small model of this name with adapters that two updates of a preference moved."""
    model = small_model(name)
    switch_off(model)
    prepare(model, device=torch.device("cpu"))
    torch.manual_seed(0)
    adapted = add_adapters(model, training)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.02)
    for _ in range(2):
        chosen, rejected = logps(adapted).view(-1, 2).T
        (rejected - chosen).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted


def logps(model) -> torch.Tensor:
    return SequenceScorer(model).train()(batch("padded", pairs()))


@pytest.mark.parametrize(
    "name",
    ["llama", "llama+tied", "falcon", "gpt2", "gemma3n_text", "jamba", "longcat_flash", "mixtral"],
)
def test_what_is_published_is_what_the_adapters_trained(name):
    adapted = trained(name)
    with torch.no_grad():
        before, expected = logps(small_model(name)), logps(adapted)
        assert (expected - before).abs().max() > 0.1, "they learned something"
        torch.testing.assert_close(logps(merge_adapters(adapted)), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "modules"),
    [("zamba", ["all-linear"]), ("zamba2", ["all-linear"]), ("zamba2", ["down_proj"])],
)
def test_adapters_on_blocks_that_share_their_weights_are_refused(name, modules):
    training = LORA.model_copy(update={"lora_target_modules": modules})
    with pytest.raises(ConfigError, match=r"layers\.1\..* and model\.layers\.3\..* share one"):
        add_adapters(small_model(name), training)


def test_beside_such_blocks_adapters_stand_and_are_merged():
    training = LORA.model_copy(update={"lora_target_modules": ["linear"]})
    adapted = trained("zamba", training)
    expected = logps(adapted)
    torch.testing.assert_close(logps(merge_adapters(adapted)), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_projection_in_groups_gets_no_adapter(device):
    model = small_model("deepseek_v4").to(device)
    with pytest.raises(ConfigError, match=r"o_a_proj is a DeepseekV4GroupedLinear, which does"):
        add_adapters(model, LORA)


class Rounding(torch.nn.Linear):
    """A product with weights of 1, 0 and -1, as BitNet computes it while it trains."""

    def forward(self, rows):
        size = self.weight.abs().mean()
        return torch.nn.functional.linear(rows, (self.weight / size).round().clamp(-1, 1) * size)


def test_a_product_with_other_numbers_than_its_weights_gets_no_adapter():
    model = small_model("llama")
    own = model.model.layers[0].self_attn.q_proj
    rounding = Rounding(own.in_features, own.out_features, bias=False)
    rounding.weight = own.weight
    model.model.layers[0].self_attn.q_proj = rounding
    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn\.q_proj is a Rounding"):
        add_adapters(model, LORA)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["q_proj", "nope"], "nope"),
        (["q_proj", "gate_up_proj", "down_proj"], "gate_up_proj or down_proj"),
    ],
)
def test_a_name_that_no_adapter_stands_on_is_refused_though_others_have_theirs(names, missing):
    with pytest.raises(ConfigError, match=f"no module called {missing} can have an adapter"):
        add_adapters(small_model("mixtral"), TrainingConfig(lora_r=2, lora_target_modules=names))


@pytest.mark.parametrize("names", [["w1", "w2", "w3"], ["q_proj", "gate"], ["self_attn.q_proj"]])
def test_names_that_become_those_of_the_experts_tensors_or_of_a_path_stand(names):
    training = TrainingConfig(lora_r=2, lora_target_modules=names)
    adapted = add_adapters(small_model("mixtral"), training)
    assert any("lora_A" in name for name, _ in adapted.named_parameters())
