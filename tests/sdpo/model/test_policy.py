import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from sdpo.config import ModelConfig, TrainingConfig
from sdpo.errors import ConfigError, ModelError
from sdpo.identity.model_digest import model_digest, tensor_entries
from sdpo.model.policy import add_adapters, load_policy, merge_adapters, save_policy
from sdpo.model.randomness import own_settings
from sdpo.model.sequence_scorer import SequenceScorer, TokenSequence, collate
from sdpo.system.files import folder_digests

IDS = torch.tensor([[1, 5, 9, 33, 12, 60, 7]])
LORA = TrainingConfig(lora_r=4, lora_alpha=8)


pytestmark = [
    # Of peft and transformers 5.23, about each other's names.
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_enable)?` is:FutureWarning"),
]


def load(folder, *, attention="sdpa", **options):
    return load_policy(folder, model=ModelConfig(attention=attention), **options)


def logps(policy) -> torch.Tensor:
    sequences = [TokenSequence(IDS[0].numpy(), 2), TokenSequence(IDS[0, :5].numpy(), 3)]
    with torch.no_grad():
        return SequenceScorer(policy)(collate(sequences, pad_token_id=0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_fp32_whatever_the_file_holds(make_llama, tmp_path, dtype):
    make_llama().to(dtype).save_pretrained(tmp_path / "m")
    policy = load(tmp_path / "m")
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


SHAPE = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WITH_DROPOUT = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            **SHAPE,
            **{"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64},
            **{"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
        )
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            **SHAPE,
            **{"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "layerdrop": 0.5},
            **{"num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 16},
            **{"dropout": 0.5, "attention_dropout": 0.5},
        )
    ),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(
            **SHAPE,
            **{"hidden_size": 16, "n_layer": 2, "n_head": 4},
            **{"hidden_dropout": 0.5, "attention_dropout": 0.5},
        )
    ),
}


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_the_models_own_dropout_is_off_while_it_trains(tmp_path, name):
    WITH_DROPOUT[name]().save_pretrained(tmp_path / "m")
    before = json.loads((tmp_path / "m" / "config.json").read_text())
    policy = load(tmp_path / "m", attention="eager")
    expected = logps(policy.eval())
    policy.train()
    for _ in range(3):
        torch.testing.assert_close(logps(policy), expected, rtol=0, atol=1e-5)
    with own_settings(policy):
        policy.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == before


def test_gradient_checkpointing_changes_no_gradient(save_model):
    folder = save_model()
    gradients = []
    for recomputed in (None, "blocks", "selective"):
        policy = load(folder, recomputed=recomputed).train()
        policy(input_ids=IDS).logits.square().mean().backward()
        gradients.append([p.grad for p in policy.parameters()])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=0)


def test_a_kernel_that_an_architecture_has_not_is_refused_with_the_one_that_serves(tmp_path):
    sizes = {"num_layers": 2, "num_heads": 4, "hidden_size": 16}
    config = GPTNeoConfig(attention_types=[[["global"], 2]], **sizes, **SHAPE)
    GPTNeoForCausalLM(config).save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match=r"GPTNeoForCausalLM has no such kernel.*attention: eager"):
        load(tmp_path / "m")
    load(tmp_path / "m", attention="eager")


def test_missing_tensors_are_refused_by_name(save_model):
    folder = save_model()
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lack 1 tensors .*model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load(folder)


def test_tensors_of_another_shape_are_refused(save_model):
    folder = save_model()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 48}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


def test_a_model_that_is_no_causal_language_model_is_refused(save_model):
    folder = save_model()
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


def test_an_architecture_that_nobody_knows_is_refused(save_model):
    folder = save_model()
    (folder / "config.json").write_text(json.dumps({"model_type": "of-tomorrow"}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


def test_pickles_are_never_loaded(save_model, make_llama):
    folder = save_model()
    (folder / "model.safetensors").unlink()
    torch.save(make_llama().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles are never loaded"):
        load(folder)


def test_a_damaged_weights_file_is_refused(save_model):
    folder = save_model()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_fresh_adapters_leave_every_log_prob_bitwise_as_it_was(save_model, tied):
    policy = load(save_model(tie_word_embeddings=tied)).eval()
    before = logps(policy)
    adapted = add_adapters(policy, LORA).eval()
    assert torch.equal(logps(adapted), before)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


def randomise(adapted) -> None:
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


def test_the_merged_model_is_the_adapted_one(save_model):
    policy = load(save_model()).eval()
    before = logps(policy)
    adapted = add_adapters(policy, LORA).eval()
    randomise(adapted)
    expected = logps(adapted)
    assert not torch.allclose(expected, before, atol=0.1)
    merged = merge_adapters(adapted)
    torch.testing.assert_close(logps(merged), expected, rtol=1e-6, atol=1e-4)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}


def test_a_merged_model_is_published_under_the_names_it_came_with(save_model, tmp_path):
    folder = save_model()
    merged = merge_adapters(add_adapters(load(folder), LORA))
    (tmp_path / "out").mkdir()
    save_policy(merged, tmp_path / "out", tokenizer=folder)
    # Adapters that were never trained change nothing, so the digest stays.
    assert model_digest(tmp_path / "out") == model_digest(folder)


def test_a_model_without_adapters_merges_into_itself(save_model):
    policy = load(save_model())
    assert merge_adapters(policy) is policy


def test_adapters_on_modules_that_are_not_there_are_refused(save_model):
    training = TrainingConfig(lora_r=4, lora_target_modules=["q_prj"])
    with pytest.raises(ConfigError, match=r"lora_target_modules: .*q_prj"):
        add_adapters(load(save_model()), training)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    ("tied", "name"), [(True, "lm_head"), (True, "embed_tokens"), (False, "lm_head")]
)
def test_adapters_on_the_head_are_refused_since_scoring_would_not_see_them(save_model, tied, name):
    policy = load(save_model(tie_word_embeddings=tied))
    training = TrainingConfig(lora_r=4, lora_target_modules=["q_proj", name])
    with pytest.raises(ConfigError, match="adapters on the output head"):
        add_adapters(policy, training)


def test_adapters_on_an_embedding_of_its_own_are_merged_like_others(save_model):
    training = TrainingConfig(lora_r=4, lora_target_modules=["q_proj", "embed_tokens"])
    adapted = add_adapters(load(save_model(tie_word_embeddings=False)), training).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = logps(adapted)
    torch.testing.assert_close(logps(merge_adapters(adapted)), expected, rtol=1e-6, atol=1e-4)


def test_the_seed_decides_the_adapters(save_model):
    folder = save_model()

    def first_adapter(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        adapted = add_adapters(load(folder), LORA)
        return next(p for name, p in adapted.named_parameters() if "lora_A" in name)

    assert torch.equal(first_adapter(1), first_adapter(1))
    assert not torch.equal(first_adapter(1), first_adapter(2))


def test_a_published_model_comes_back_bit_for_bit_with_its_tokenizer(save_model, tmp_path):
    folder, out = save_model(), tmp_path / "out"
    out.mkdir()
    save_policy(load(folder), out, tokenizer=folder)
    assert model_digest(out) == model_digest(folder)
    assert {entry.dtype for entry in tensor_entries(out)} == {"F32"}
    ours, theirs = folder_digests(out), folder_digests(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert ours[name] == theirs[name]
    reloaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert torch.equal(logps(reloaded), logps(load(folder).eval()))


def test_a_bf16_model_is_published_in_fp32(make_llama, save_model, tmp_path):
    folder, out = save_model(), tmp_path / "out"
    make_llama().bfloat16().save_pretrained(folder)
    out.mkdir()
    save_policy(load(folder), out, tokenizer=folder)
    assert {entry.dtype for entry in tensor_entries(out)} == {"F32"}


def test_the_template_of_the_recipe_travels_with_the_model(save_model, tmp_path):
    folder, out = save_model(), tmp_path / "out"
    (folder / "chat_template.jinja").write_text("the tokenizer's own")
    (tmp_path / "mine.jinja").write_text("the recipe's")
    out.mkdir()
    save_policy(load(folder), out, tokenizer=folder, chat_template=str(tmp_path / "mine.jinja"))
    assert (out / "chat_template.jinja").read_text() == "the recipe's"
    assert (folder / "chat_template.jinja").read_text() == "the tokenizer's own"


def test_a_template_of_the_tokenizers_own_by_name_is_the_published_models_default(
    save_model, tmp_path
):
    folder, out = save_model(), tmp_path / "out"
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text("the default")
    (folder / "additional_chat_templates" / "rag.jinja").write_text("for retrieval")
    out.mkdir()
    save_policy(load(folder), out, tokenizer=folder, chat_template="rag")
    assert (out / "chat_template.jinja").read_text() == "for retrieval"
    assert (out / "additional_chat_templates" / "rag.jinja").read_text() == "for retrieval"


def change_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_tensors_that_are_digested_and_not_loaded_are_told(make_llama, tmp_path):
    make_llama().save_pretrained(tmp_path / "m")
    told: list[str] = []
    load(tmp_path / "m", warn=told.append)
    assert told == []
    change_weights(tmp_path / "m", lambda t: t.update({"score.weight": torch.ones(2)}))
    load(tmp_path / "m", warn=told.append)
    assert len(told) == 1
    assert "1 tensors of the weights are not loaded" in told[0]
    assert told[0].endswith("no M_t will have them: score.weight")


def test_layers_that_the_configuration_leaves_out_are_told(make_llama, tmp_path):
    make_llama().save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 1}))
    told: list[str] = []
    load(tmp_path / "m", warn=told.append)
    assert "model.layers.1." in told[0]


def test_a_head_beside_an_embedding_that_it_is_tied_to_is_refused(make_llama, tmp_path):
    make_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "m")
    load(tmp_path / "m")

    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2

    change_weights(tmp_path / "m", add)
    with pytest.raises(ModelError, match=r"its config\.json ties it to the embedding"):
        load(tmp_path / "m")
