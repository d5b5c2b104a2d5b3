"""Tiny random models of the causal architectures that the installed transformers has.

They are made from configuration classes: of the names in :data:`SIZES` an architecture gets those
that its configuration knows. :data:`MORE` has what some need beside or instead, :data:`LEFT_OUT`
those that are not made, with the reason.
"""

import inspect
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 61
POSITIONS = 256

_HIDDEN = ("hidden_size", "d_model", "n_embd")
_INNER = ("intermediate_size", "ffn_dim", "d_ff")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk")
_OF_EXPERTS = ("moe_intermediate_size", "shared_expert_intermediate_size")

SIZES: dict[str, Any] = {
    **dict.fromkeys(_HIDDEN, 32),
    **dict.fromkeys(_INNER, 48),
    **dict.fromkeys(_LAYERS, 2),
    **dict.fromkeys(_HEADS, 4),
    **dict.fromkeys(_EXPERTS, 4),
    **dict.fromkeys(_CHOSEN, 2),
    **dict.fromkeys(_OF_EXPERTS, 24),
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "n_positions": POSITIONS,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "n_groups": 1,
    "topk_group": 1,
    "sliding_window": 16,
    "chunk_size": 8,
    # Wide enough for logits that tell tokens apart.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.5, 3.0, 6.0, 12.0],
    "original_max_position_embeddings": 24,
    "factor": 4.0,
}
MORE: dict[str, dict[str, Any]] = {
    "codegen": {"rotary_dim": 8},
    "falcon": {"alibi": False, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gptj": {"rotary_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "mixtral": {"router_jitter_noise": 0.1},
    "mpt": {"max_seq_len": POSITIONS},
    "opt": {"word_embed_proj_dim": 32},
}
"""Settings of an architecture in place of those above."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama+dynamic": (
        "llama",
        {
            "max_position_embeddings": 24,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
        },
    ),
    "llama+tied": ("llama", {"tie_word_embeddings": True}),
    "falcon+alibi": ("falcon", {"alibi": True}),
    "phi3+longrope": ("phi3", {"original_max_position_embeddings": 24, "rope_parameters": _LONG}),
}
"""Further models of an architecture, with the settings that make them another kind."""

_ENCODERS = (
    "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert "
    "data2vec-text electra ernie marian mbart megatron-bert mvp pegasus plbart prophetnet rembert "
    "roberta roberta-prelayernorm roc_bert roformer trocr whisper xlm xlm-roberta xlm-roberta-xl "
    "xlnet xmod"
)
_OTHER_MODALITIES = (
    "emu3 fuyu gemma3 gemma3n gemma4 gemma4_unified git got_ocr2 hyperclovax llama4 mllama moshi "
    "moss_transcribe_diarize musicgen musicgen_melody phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp"
)
_ALIASES = "dots3_note gpt-sw3 internlm3 iquestcoder"
_ASSISTANTS = "gemma4_assistant gemma4_unified_assistant"
_OTHER_INPUTS = "blt reformer"
_NO_SMALL_ONE = (
    "axk1 axk2 bamba cohere_compass_text dbrx deepseek_v2 deepseek_v3 deepseek_v32 dots1 "
    "dots3_note_text falcon_h1 gemma3n_text gemma4_text gemma4_unified_text glm4_moe_lite "
    "glm_moe_dsa granitemoehybrid kimi_linear lfm2_moe longcat_flash minicpm3 nemotron "
    "xlstm youtu zamba zamba2 zaya"
)
LEFT_OUT = {
    **dict.fromkeys(_ENCODERS.split(), "an encoder, or half of an encoder with a decoder"),
    **dict.fromkeys(_OTHER_MODALITIES.split(), "its text part is in the table, or it needs images"),
    **dict.fromkeys(_ALIASES.split(), "another name of an architecture in the table"),
    **dict.fromkeys(_ASSISTANTS.split(), "drafts for another model, whose states it reads"),
    **dict.fromkeys(_OTHER_INPUTS.split(), "its inputs are bytes in patches, or of fixed lengths"),
    **dict.fromkeys(_NO_SMALL_ONE.split(), "these settings make no small model of it"),
}

MOST_USED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3+longrope",
    "mixtral",
    "falcon",
    "gpt2",
)
"""Those that every test run goes through."""


def names() -> list[str]:
    """All models of the table, sorted."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS} - LEFT_OUT.keys())


def small_model(name: str) -> Any:
    """The model of this name in fp32 with random weights, always the same ones."""
    kind, more = VARIANTS.get(name, (name, {}))
    settings = _settings(kind) | MORE.get(kind, {}) | more
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = AutoConfig.for_model(kind, **settings)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _settings(kind: str) -> dict[str, Any]:
    """Those of the sizes that the configuration of ``kind`` has, by whatever name it keeps them."""
    own = AutoConfig.for_model(kind)
    accepted = inspect.signature(type(own)).parameters
    found = {}
    for name, value in SIZES.items():
        if name == "head_dim":
            takes = name in accepted
        elif name in ("sliding_window", "num_key_value_heads", "q_lora_rank", "kv_lora_rank"):
            takes = getattr(own, name, None) is not None
        else:
            takes = hasattr(own, name)
        if takes:
            found[name] = value
    return found
