"""Make a Llama of half a million random weights with its tokenizer, as a Hugging Face model folder.

The weights are drawn as transformers initialises them (normal, 0.02; norms 1; arXiv 2302.13971's
architecture with the output tied to the embedding). It is written without torch or transformers.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sdpo.system.files import write_json
from sdpo.system.json_values import Json

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLE_MARKS = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{{- bos_token -}}\n"
    "{%- for message in messages -%}\n"
    "{{- '<|' + message['role'] + '|>' + message['content'] + eos_token -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}\n"
)
"""A special token is at every border, so a prompt's ids begin those of prompt + completion."""

VOCABULARY = 768
CONTEXT_TOKENS = 256
HIDDEN, FEED_FORWARD, LAYERS, HEADS, KEY_VALUE_HEADS = 128, 256, 3, 4, 2
INITIALIZER_RANGE = 0.02
SEED = 20240328


def write_model(folder: Path, texts: Iterable[str]) -> None:
    """Write the model into ``folder``, with a tokenizer whose merges are learnt from ``texts``."""
    tokenizer = _tokenizer(texts)
    ids = {token: tokenizer.token_to_id(token) for token in (PAD, BOS, END)}
    special = {
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[END],
        "pad_token_id": ids[PAD],
    }
    (folder / "model.safetensors").write_bytes(save(dict(_weights()), metadata={"format": "pt"}))
    write_json(folder / "config.json", _config() | special)
    write_json(folder / "generation_config.json", special)
    write_json(folder / "tokenizer_config.json", _tokenizer_config())
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _config() -> dict[str, Json]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT_TOKENS,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "initializer_range": INITIALIZER_RANGE,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
    }


def _weights() -> Iterator[tuple[str, NDArray[np.float32]]]:
    # RandomState and not default_rng: numpy promises its stream for good (NEP 19).
    rng = np.random.RandomState(SEED)
    for name, shape in _shapes().items():
        if name.endswith("norm.weight"):
            yield name, np.ones(shape, dtype=np.float32)
        else:
            yield name, rng.normal(0.0, INITIALIZER_RANGE, shape).astype(np.float32)


def _shapes() -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every tensor by name, (out, in) for projections as in ``nn.Linear``."""
    key_value = HIDDEN // HEADS * KEY_VALUE_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for index in range(LAYERS):
        layer = f"model.layers.{index}."
        shapes |= {
            f"{layer}input_layernorm.weight": (HIDDEN,),
            f"{layer}self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}self_attn.k_proj.weight": (key_value, HIDDEN),
            f"{layer}self_attn.v_proj.weight": (key_value, HIDDEN),
            f"{layer}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}post_attention_layernorm.weight": (HIDDEN,),
            f"{layer}mlp.gate_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{layer}mlp.up_proj.weight": (FEED_FORWARD, HIDDEN),
            f"{layer}mlp.down_proj.weight": (HIDDEN, FEED_FORWARD),
        }
    return shapes


def _tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer: any text comes back from its ids unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, END, *ROLE_MARKS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def _tokenizer_config() -> dict[str, Json]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": list(ROLE_MARKS),
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_TOKENS,
        "padding_side": "right",
    }
