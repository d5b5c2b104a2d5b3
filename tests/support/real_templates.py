"""Chat templates as published models have them, and a tokenizer whose control tokens are theirs."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sdpo.tokens.boundary import Cut, boundaries_of, cut
from sdpo.tokens.template import Encoder

FOLDER = Path(__file__).resolve().parents[1] / "templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
END_OF_TURN = {
    "chatml": "<|im_end|>",
    "chatml_default_system": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama31": "<|eot_id|>",
    "mistral": "</s>",
    "mistral_system_last": "</s>",
    "mistral_tools": "</s>",
    "gemma": "<end_of_turn>",
    "phi3": "<|end|>",
    "qwen3": "<|im_end|>",
    "exaone4": "[|endofturn|]",
    "gpt_oss": "<|return|>",
    "smollm3": "<|im_end|>",
}
NO_SYSTEM = {"gemma"}
WITH_TOOLS = ("exaone4", "gpt_oss", "llama31", "mistral_tools", "qwen3")
WITH_REASONING = ("exaone4", "gpt_oss", "qwen3")
CONTROLS = [
    *("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "[|user|]", "[|assistant|]"),
    *("[|system|]", "[|endofturn|]", "<|start|>", "<|message|>", "<|channel|>", "<|return|>"),
    *("<|call|>", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[|tool|]"),
]
_TEXT = ["The quick brown fox jumps over the lazy dog.", "user assistant system model final"]


def trained(text: Sequence[str], *, control: Sequence[str], vocab_size: int) -> str:
    """A byte-level tokenizer that knows control tokens and the tags of thoughts, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(control),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*text] * 4, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>")])
    return str(tokenizer.to_str())


@lru_cache
def _backend() -> str:
    return trained(_TEXT, control=CONTROLS, vocab_size=500)


def cut_of(encoder: Encoder, *rows: Any) -> Cut:
    """Both sides of rows, divided into prompt and completion."""
    encoded = encoder.encode(rows, ["chosen", "rejected"])
    return cut(
        encoded,
        boundary=boundaries_of(encoded),
        messages=[np.ones(len(rows), dtype=np.int64)] * 2,
        end_ids=encoder.end_ids,
        max_length=4096,
    )


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the template of this name."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        bos_token="<s>",
        eos_token=END_OF_TURN[template],
        pad_token="<pad>",
    )
    tokenizer.chat_template = (FOLDER / f"{template}.jinja").read_text().removesuffix("\n")
    return tokenizer
