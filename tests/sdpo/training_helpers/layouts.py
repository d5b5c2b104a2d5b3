"""Small models of many architectures, and prompts with completions in a layout."""

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sdpo.model.layouts import LAYOUTS, Batch, PromptGroup

VOCABULARY = 61
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def small_model(kind: str, **settings: Any) -> Any:
    """A model of transformers' type ``kind`` with random weights, ready to score."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **(SMALL | settings))
    return AutoModelForCausalLM.from_config(config).eval()


def pairs(count: int = 3, *, sides: int = 2) -> list[PromptGroup]:
    """Prompts of 1 to 14 random tokens with completions like them."""
    rng = np.random.default_rng(5)

    def ids() -> np.ndarray:
        return rng.integers(0, VOCABULARY, int(rng.integers(1, 15))).astype(np.int32)

    return [PromptGroup(ids(), tuple(ids() for _ in range(sides))) for _ in range(count)]


def batch(layout: str, groups: list[PromptGroup]) -> Batch:
    """The groups as a layout has them."""
    return LAYOUTS[layout].collate(groups, pad_token_id=0, device="cpu")
