"""Make tiny random models of the causal architectures that the installed transformers has.

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
_LATENT = {"num_key_value_heads": 4}
"""Attention by compressed keys has keys and values of its own for every head."""
_INDEXED = {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 16}
"""Attention goes to the keys of the highest scores. With few heads many keys would have a score of
exactly 0, and a kernel would choose others of them in rows of another length."""
_LATENT_SIZES = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "head_dim": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_BOTH = ["linear_attention", "full_attention"]
_TWICE = ["linear_attention", "hybrid"] * 2
_SMALL_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
_SMALL_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": _BOTH,
}
_SHARED_KEYS = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}
"""Later layers attend to the keys and values of earlier ones."""
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash"), _LATENT
    ),
    **dict.fromkeys(("minicpm3", "youtu"), _LATENT),
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), _LATENT | _INDEXED),
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 1, 1],
            },
            "full_attention": None,
        },
    },
    "bamba": _SMALL_MAMBA | {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_jitter_eps": 0.1, "moe_top_k": 2},
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": _LATENT
    | _INDEXED
    | {f"swa_{name}": value for name, value in _LATENT_SIZES.items()}
    | {
        "layer_types": ["indexed_attention", "sliding_attention"],
        "head_dim": 16,
        "shared_experts_intermediate_size": 24,
        **_LATENT_SIZES,
    },
    "falcon": {"alibi": False, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "falcon_h1": _SMALL_MAMBA,
    "gemma3n_text": _SHARED_KEYS | {"activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0]},
    "gemma4_text": _SHARED_KEYS | {"global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": _SMALL_MAMBA | {"layer_types": _BOTH, "shared_intermediate_size": 24},
    "kimi_linear": _LATENT | {"linear_head_dim": 8, "linear_num_heads": 4, "layer_types": _BOTH},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "mixtral": {"router_jitter_noise": 0.1},
    "mpt": {"max_seq_len": POSITIONS},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "moe_shared_expert_intermediate_size": 24,
    },
    "opt": {"word_embed_proj_dim": 32},
    "qwen3_5_moe_text": _SMALL_DELTA,
    "qwen3_5_text": _SMALL_DELTA,
    "qwen3_next": _SMALL_DELTA,
    "qwen4_exp_text": _SMALL_DELTA
    | {
        "hc_lowrank": 8,
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ple_layer_ids": [1],
        "ngram_vocab_size_base": 50,
        "heads_per_ngram": 2,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 1,
    },
    "zamba": {"num_hidden_layers": 4, "layers_block_type": _TWICE},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": _TWICE},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""An architecture has these settings in place of those above."""

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
"""These are further models of an architecture, with the settings that make them another kind."""

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
LEFT_OUT = {
    **dict.fromkeys(_ENCODERS.split(), "an encoder, or half of an encoder with a decoder"),
    **dict.fromkeys(_OTHER_MODALITIES.split(), "its text part is in the table, or it needs images"),
    **dict.fromkeys(_ALIASES.split(), "another name of an architecture in the table"),
    **dict.fromkeys(_ASSISTANTS.split(), "drafts for another model, whose states it reads"),
    **dict.fromkeys(_OTHER_INPUTS.split(), "its inputs are bytes in patches, or of fixed lengths"),
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
"""Every test run goes through these."""


def names() -> list[str]:
    """Return the names of all models of the table, sorted."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS} - LEFT_OUT.keys())


def small_model(name: str, **others: Any) -> Any:
    """Return the model of this name in fp32 with random weights, always the same ones.

    ``others``: settings in place of its own.
    """
    kind, more = VARIANTS.get(name, (name, {}))
    settings = _settings(kind) | MORE.get(kind, {}) | more | others
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = AutoConfig.for_model(kind, **settings)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _settings(kind: str) -> dict[str, Any]:
    """Return the sizes that the configuration of ``kind`` has, by whatever name it keeps them."""
    own = AutoConfig.for_model(kind)
    accepted = inspect.signature(type(own)).parameters
    found = {}
    for name, value in SIZES.items():
        stored = own.attribute_map.get(name, name)
        if name in ("head_dim", "v_head_dim"):
            takes = name in accepted
        elif name in ("sliding_window", "num_key_value_heads", "q_lora_rank", "kv_lora_rank"):
            takes = vars(own).get(stored) is not None
        else:
            takes = stored in vars(own)
        if takes:
            found[name] = value
    return found
