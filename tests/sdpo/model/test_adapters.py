"""Adapters stand where merging them makes the model that was trained, and are refused elsewhere."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.small_models import small_model
from sdpo.config import ModelConfig, TrainingConfig
from sdpo.errors import ConfigError
from sdpo.model.handed_on import adapter_tensors, idle_adapters, save_adapter
from sdpo.model.policy import add_adapters, load_policy, merge_adapters
from sdpo.model.prepare import prepare, unreached
from sdpo.model.randomness import switch_off
from sdpo.model.sequence_scorer import SequenceScorer

from ..training_helpers.adapted import logps, with_trained_adapters
from ..training_helpers.layouts import pairs

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
    return with_trained_adapters(model, training)


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


FORMS = {
    "rsLoRA": {"lora_rslora": True},
    "DoRA": {"lora_dora": True},
    "the head whole": {"lora_modules_to_save": ["lm_head"]},
    "embedding, head and norms whole": {
        "lora_modules_to_save": ["embed_tokens", "lm_head", "norm", "input_layernorm"]
    },
    "a projection whole": {"lora_modules_to_save": ["gate_proj"]},
    "DoRA and the embedding whole": {"lora_dora": True, "lora_modules_to_save": ["embed_tokens"]},
}


def published(adapted, name: str, folder):
    """The adapter as it is published, read by plain peft over a base of plain transformers."""
    base = folder / "base"
    small_model(name).save_pretrained(base)
    out = folder / "adapter"
    out.mkdir()
    save_adapter(adapted, out, tensors=adapter_tensors(adapted), input_model=base)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out).eval()


def plain_logps(model) -> torch.Tensor:
    """Log-probs of the same completions by transformers' own logits."""
    found = []
    for pair in pairs():
        for completion in pair.completions:
            ids = torch.tensor([*pair.prompt, *completion], dtype=torch.long)
            rows = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            at = torch.arange(len(pair.prompt) - 1, len(ids) - 1)
            found.append(rows[at, ids[at + 1]].sum())
    return torch.stack(found).float()


@pytest.mark.parametrize("name", ["llama", "llama+tied"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_scored_published_and_merged_as_plain_peft_computes_it(name, form, tmp_path):
    adapted = trained(name, LORA.model_copy(update=FORMS[form]))
    with torch.no_grad():
        before, expected = logps(small_model(name)), logps(adapted)
        assert (expected - before).abs().max() > 0.1, "it learned something"
        torch.testing.assert_close(
            plain_logps(published(adapted, name, tmp_path)), expected, rtol=1e-5, atol=1e-3
        )
        policy = load_policy(tmp_path / "adapter", model=ModelConfig())
        prepare(policy, device=torch.device("cpu"))
        torch.testing.assert_close(logps(policy), expected, rtol=0, atol=0)
        merged = merge_adapters(adapted)
        torch.testing.assert_close(logps(merged), expected, rtol=1e-6, atol=1e-3)
        merged.save_pretrained(tmp_path / "merged")
        loaded = load_policy(tmp_path / "merged", model=ModelConfig())
        torch.testing.assert_close(logps(loaded), expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["nope"], "has no module called nope with weights"),
        (["self_attn"], "has no module called self_attn with weights of its own"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_modules_that_cannot_train_whole_are_refused(names, said, device):
    training = LORA.model_copy(update={"lora_modules_to_save": names})
    with pytest.raises(ConfigError, match=rf"lora_modules_to_save: .*{said}"):
        add_adapters(small_model("llama").to(device), training)


def test_adapters_on_weights_that_the_code_reads_past_the_module_are_told():
    adapted = add_adapters(small_model("jamba"), LORA)
    found = idle_adapters(unreached(SequenceScorer(adapted), device=torch.device("cpu")))
    assert found
    assert all(name.endswith("mamba.dt_proj") for name in found)
    others = add_adapters(small_model("llama"), LORA)
    assert not unreached(SequenceScorer(others), device=torch.device("cpu"))


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
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deepseek_v4", r"o_a_proj is a DeepseekV4GroupedLinear"),
        ("llama4_text", r"feed_forward\.router is a Llama4Router"),
    ],
)
def test_a_projection_in_groups_or_with_several_answers_gets_no_adapter(name, said, device):
    with pytest.raises(ConfigError, match=f"{said}, which does more with its weight"):
        add_adapters(small_model(name).to(device), LORA)


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
