"""A tiny reward model: it scores conversations by weights that were drawn at random."""

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification


def write_reward_model(folder: Path, *, like: Path, seed: int) -> Path:
    """A tiny classifier with one output, random weights, and the tokenizer of ``like``."""
    tokenizer = AutoTokenizer.from_pretrained(like)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=512, initializer_range=0.3,
            pad_token_id=tokenizer.pad_token_id, num_labels=1,
        )  # fmt: skip
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
