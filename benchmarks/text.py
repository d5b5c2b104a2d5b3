"""Make text of a wanted number of tokens, and a byte-level BPE tokenizer that learns from it."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sdpo.inputs.demo.model import BOS, CHAT_TEMPLATE, END, PAD, ROLE_MARKS
from sdpo.system.files import write_json

PROMPT_MARKS, COMPLETION_MARKS = 4, 1
"""The template adds so many tokens: BOS, user, end, assistant to a prompt; end to a completion."""

_WORDS = 50_000
_SYLLABLES = np.array(
    [c + v for c in "bcdfghjklmnprstvwz" for v in ("a", "e", "i", "o", "u", "ai", "or")]
)


class Writer:
    """A writer draws words as people use them: few often, most seldom (Zipf), some only once."""

    def __init__(self, *, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 12])
        counts = self._rng.choice([1, 2, 3, 4], _WORDS, p=[0.1, 0.4, 0.35, 0.15])
        syllables = iter(self._rng.choice(_SYLLABLES, counts.sum()).tolist())
        drawn = ("".join(islice(syllables, count)) for count in counts.tolist())
        self.words = list(dict.fromkeys(drawn))
        ranks = np.arange(1, len(self.words) + 1)
        # The two sides prefer different words, so that there is something to learn.
        weights = [1 / (ranks + 3) * np.where(ranks % 3 == side, 1.5, 1.0) for side in range(3)]
        self._shares = [np.cumsum(row / row.sum()) for row in weights]

    def sample(self, words: int, *, side: int) -> str:
        """Return so many words. ``side``: 0 prompt, 1 chosen, 2 rejected."""
        return " ".join(self._draw(words, side=side))

    def _draw(self, words: int, *, side: int) -> list[str]:
        codes = np.searchsorted(self._shares[side], self._rng.random(words))
        return [self.words[code] for code in codes.clip(max=len(self.words) - 1)]

    def text(self, tokens: int, *, side: int, cost: dict[str, int]) -> str:
        """Return words of ``tokens`` tokens together, or of a few fewer where none fits any more.

        ``cost``: tokens of each word with a blank before it. There is one word at least.
        """
        kept: list[str] = []
        left = tokens
        for word in self._draw(tokens + 8, side=side):
            if cost[word] <= left:
                kept.append(word)
                left -= cost[word]
            if not left:
                break
        return " " + " ".join(kept or [min(cost, key=cost.__getitem__)])


def make_tokenizer(writer: Writer, *, vocabulary: int) -> Tokenizer:
    """Return a tokenizer of at most ``vocabulary`` tokens, learnt from the writer's own text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, END, *ROLE_MARKS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [" " + writer.sample(200, side=side) for side in (0, 1, 2) for _ in range(100)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_length: int) -> dict[str, int]:
    """Write the tokenizer's files; return the special ids as a model configuration has them."""
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": list(ROLE_MARKS),
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "padding_side": "right",
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    names = {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD}
    ids = {name: tokenizer.token_to_id(token) for name, token in names.items()}
    return {name: value for name, value in ids.items() if value is not None}


def word_costs(writer: Writer, tokenizer: Tokenizer) -> dict[str, int]:
    """Return how many tokens each word has with a blank before it."""
    encoded = tokenizer.encode_batch(
        [f" {word}" for word in writer.words], add_special_tokens=False
    )
    return {word: len(one.ids) for word, one in zip(writer.words, encoded, strict=True)}


def write_rows(
    lengths: np.ndarray, writer: Writer, *, cost: dict[str, int]
) -> list[dict[str, list[dict[str, str]]]]:
    """Return preference pairs as conversations, of ``lengths`` int ``[pairs, 3]`` tokens."""
    rows = []
    for prompt, *sides in lengths.tolist():
        texts = [writer.text(prompt - PROMPT_MARKS, side=0, cost=cost)]
        texts += [
            writer.text(tokens - COMPLETION_MARKS, side=side, cost=cost)
            for side, tokens in enumerate(sides, start=1)
        ]
        roles: Sequence[str] = ("user", "assistant", "assistant")
        turns = [[{"role": r, "content": t}] for r, t in zip(roles, texts, strict=True)]
        rows.append(dict(zip(("prompt", "chosen", "rejected"), turns, strict=True)))
    return rows
