"""Tiny models that the tests build themselves, shared by all tests of the engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 64

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # Wide enough for logits that tell tokens apart.
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Settings that most architectures share."""

MakeLlama = Callable[..., LlamaForCausalLM]
SaveModel = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two workers on two cores must not fight over them, and sums keep their order."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_llama() -> MakeLlama:
    """``make_llama(seed=0, **config)``: two layers of random weights, always the same ones."""

    def make(*, seed: int = 0, **config: Any) -> LlamaForCausalLM:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(LlamaConfig(**(SMALL | config))).eval()

    return make


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: ``<pad>``, ``<s>``, ``</s>``, ``<unk>`` and w4 to w63."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCABULARY))]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


@pytest.fixture
def save_model(
    tmp_path: Path, make_llama: MakeLlama, tokenizer: PreTrainedTokenizerFast
) -> SaveModel:
    """``save_model(name="model", with_tokenizer=True, **config)``: a Llama's folder."""

    def save(name: str = "model", *, with_tokenizer: bool = True, **config: Any) -> Path:
        folder = tmp_path / name
        make_llama(**config).save_pretrained(folder)
        if with_tokenizer:
            tokenizer.save_pretrained(folder)
        return folder

    return save
