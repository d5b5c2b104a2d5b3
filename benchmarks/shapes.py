"""Define what is measured: the model's shape, how long pairs are, the arithmetic that both need.

The process that starts the others reads it, so it imports neither torch nor transformers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A shape gives the sizes of a Llama; ``tied``: its output is tied to the embedding."""

    vocabulary: int
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    tied: bool

    @property
    def parameters(self) -> int:
        """Return the number of weights, norms included."""
        head = 0 if self.tied else self.vocabulary * self.hidden
        norms = (2 * self.layers + 1) * self.hidden
        return self.layers * self._block + self.vocabulary * self.hidden + head + norms

    @property
    def _block(self) -> int:
        key_value = self.hidden * self.key_value_heads // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * key_value
        return attention + 3 * self.hidden * self.feed_forward

    def forward_flops(self, prompt: int, chosen: int, rejected: int) -> int:
        """Return the useful operations of one forward of a pair, given its lengths in tokens.

        Only matrix products count, a multiply-add as two: the prompt once, attention over what the
        causal mask lets through, the head and the last block's feed-forward part on as many rows as
        there are completion tokens.
        """
        tokens = prompt + chosen + rejected
        # Token i of a sequence attends to i + 1 keys; completions see the prompt and themselves.
        keys = prompt * (prompt + 1) // 2
        keys += sum(n * prompt + n * (n + 1) // 2 for n in (chosen, rejected))
        attention = 2 * 2 * keys * self.hidden * self.layers
        head = 2 * (chosen + rejected) * self.vocabulary * self.hidden
        unread = 2 * prompt * 3 * self.hidden * self.feed_forward
        return 2 * tokens * self.layers * self._block + attention + head - unread


SHAPES: Mapping[str, Shape] = {
    # 5,197,056 weights with the output tied to the embedding.
    "5M": Shape(
        vocabulary=2048,
        layers=6,
        hidden=256,
        feed_forward=672,
        heads=8,
        key_value_heads=8,
        tied=True,
    ),
    "tiny": Shape(
        vocabulary=512, layers=2, hidden=32, feed_forward=64, heads=4, key_value_heads=2, tied=True
    ),
    "toy": Shape(
        vocabulary=512, layers=1, hidden=16, feed_forward=32, heads=2, key_value_heads=2, tied=True
    ),
    "0.2B": Shape(
        vocabulary=32000,
        layers=16,
        hidden=1024,
        feed_forward=2816,
        heads=16,
        key_value_heads=8,
        tied=True,
    ),
    "0.5B": Shape(
        vocabulary=128256,
        layers=24,
        hidden=1024,
        feed_forward=3584,
        heads=16,
        key_value_heads=8,
        tied=True,
    ),
    "1B": Shape(
        vocabulary=128256,
        layers=16,
        hidden=2048,
        feed_forward=8192,
        heads=32,
        key_value_heads=8,
        tied=True,
    ),
    "3B": Shape(
        vocabulary=128256,
        layers=28,
        hidden=3072,
        feed_forward=8192,
        heads=24,
        key_value_heads=8,
        tied=True,
    ),
    "8B": Shape(
        vocabulary=128256,
        layers=32,
        hidden=4096,
        feed_forward=14336,
        heads=32,
        key_value_heads=8,
        tied=False,
    ),
}
"""1B, 3B and 8B are the shapes of Llama 3.2 and 3.1; 0.5B is theirs scaled down."""


def shape_of(folder: Path) -> Shape:
    """Return the shape of the Llama in a folder.

    Raises:
        SystemExit: it is no Llama, of whose operations alone the arithmetic here knows.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = config.get("num_attention_heads", 0)
    if config.get("model_type") != "llama" or config.get("head_dim") not in (
        None,
        config["hidden_size"] // heads,
    ):
        raise SystemExit(
            f"--model {folder}: operations are counted for Llamas whose heads share the hidden "
            "size, and this is another model"
        )
    return Shape(
        vocabulary=config["vocab_size"],
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        feed_forward=config["intermediate_size"],
        heads=heads,
        key_value_heads=config.get("num_key_value_heads") or heads,
        tied=config.get("tie_word_embeddings", False),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths are means in tokens, template included, and how they spread."""

    prompt: int
    chosen: int
    rejected: int
    prompt_sigma: float = 0.9
    completion_sigma: float = 0.7
    side_correlation: float = 0.7

    def sample(self, pairs: int, *, seed: int, max_length: int) -> np.ndarray:
        """Return the lengths of prompt, chosen and rejected of each pair, int ``[pairs, 3]``.

        They are lognormal; a pair's completions are about equally long; nothing is longer than
        ``max_length`` together with its prompt. The sample's means are those asked for, as far as
        that limit lets them be.
        """
        rng = np.random.default_rng([seed, 11])
        normal = rng.standard_normal((pairs, 4))
        shared = np.sqrt(self.side_correlation) * normal[:, 1:2]
        sides = shared + np.sqrt(1 - self.side_correlation) * normal[:, 2:]
        raw = np.exp(np.hstack([self.prompt_sigma * normal[:, :1], self.completion_sigma * sides]))
        means = np.array([self.prompt, self.chosen, self.rejected], dtype=float)
        scale = means / raw.mean(axis=0)
        lengths = _clipped(raw * scale, max_length)
        for _ in range(50):  # clipping lowers the means: scale until they are met
            scale *= means / lengths.mean(axis=0)
            lengths = _clipped(raw * scale, max_length)
        return lengths


def _clipped(raw: Any, max_length: int) -> np.ndarray:
    # A mean that the limit lets nobody meet is asked for ever more, up to infinity.
    lengths: np.ndarray = np.rint(np.minimum(raw, max_length)).astype(np.int64)
    lengths[:, 0] = lengths[:, 0].clip(8, max_length // 2)
    for side in (1, 2):
        lengths[:, side] = np.clip(lengths[:, side], 4, max_length - lengths[:, 0])
    return lengths


LENGTHS: Mapping[str, Lengths] = {
    "ultrafeedback": Lengths(prompt=159, chosen=214, rejected=219),
    "ultrafeedback-long": Lengths(prompt=160, chosen=376, rejected=386),
    "hh": Lengths(prompt=150, chosen=80, rejected=80),
    "tldr": Lengths(prompt=340, chosen=31, rejected=31, prompt_sigma=0.3, completion_sigma=0.4),
    "toy": Lengths(prompt=14, chosen=10, rejected=10, prompt_sigma=0.3, completion_sigma=0.3),
    "short": Lengths(prompt=24, chosen=16, rejected=16, prompt_sigma=0.4, completion_sigma=0.4),
}
"""``ultrafeedback`` has the means of UltraFeedback in the CPU workload, ``-long`` those of whole
texts, with 0.42 tokens of a prompt for one of a completion. ``hh`` is Anthropic HH, ``tldr`` Reddit
TL;DR (11 to 1); ``short`` is for trials, and ``toy`` for many pairs, of at most 64 tokens in
``benchmarks.memory``."""
