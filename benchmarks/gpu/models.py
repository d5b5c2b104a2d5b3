"""Make models with random weights on the device, pairs with random tokens, and a plain oracle."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.findings import Settings
from benchmarks.shapes import SHAPES, Shape
from sdpo.model.fused_ops import fuse
from sdpo.model.last_block import prune
from sdpo.model.layouts import LAYOUTS, Batch, PromptGroup
from sdpo.model.sequence_scorer import plain_attention

CHECKED = Shape(
    vocabulary=32000,
    layers=8,
    hidden=1024,
    feed_forward=3584,
    heads=16,
    key_value_heads=8,
    tied=False,
)
"""The model whose values and gradients are compared has this shape."""

_HEAD = 8.0
"""Random weights give flat logits. With the head scaled so, log-probs of tokens spread as those of
a trained model do, and rounding costs what it costs there."""


def checked_shape(settings: Settings) -> Shape:
    """Return the shape that is compared: a tiny one where the settings say so."""
    return SHAPES["tiny"] if settings.tiny else CHECKED


def llama(shape: Shape, *, device: str, seed: int, sharp: bool = True) -> Any:
    """Return a Llama of ``shape``, fp32 on ``device``, as a stage has it after loading.

    ``sharp``: whether its logits are as sharp as those of a trained model.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        model = LlamaForCausalLM(config)
    if sharp:
        with torch.no_grad():
            model.lm_head.weight.mul_(_HEAD)
    fuse(model)
    prune(model)
    return model


def pairs(
    count: int, *, shortest: int, longest: int, vocabulary: int, rng: np.random.Generator
) -> list[PromptGroup]:
    """Return pairs of random tokens.

    Each prompt and side has at least ``shortest`` and fewer than ``longest`` tokens.
    """

    def tokens() -> np.ndarray:
        length = int(rng.integers(shortest, longest))
        return rng.integers(5, vocabulary, length).astype(np.int32)

    return [PromptGroup(tokens(), (tokens(), tokens())) for _ in range(count)]


def batch_of(
    layout: str, groups: Sequence[PromptGroup], *, device: str, blocks: bool = False
) -> Batch:
    """Return ``groups`` laid out on the device; ``blocks``: as for a GPU, whatever it is."""
    collated = LAYOUTS[layout].collate(groups, pad_token_id=0, device="cuda" if blocks else device)
    return collated.to(torch.device(device, 0) if device == "cuda" else torch.device(device))


def plain_logps(model: Any, groups: Sequence[PromptGroup], *, device: str) -> torch.Tensor:
    """Compute log-probs by transformers alone: one sequence a forward, log-softmax in float64.

    Returns float64 ``[completions]``, in nats, with their graph where gradients are on.
    """
    plain_attention(model)
    found: list[torch.Tensor] = []
    for group in groups:
        for side in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, side]).astype(np.int64))
            ids = ids.to(device)[None]
            first = len(group.prompt)
            logits = model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1].double()
            logps = torch.log_softmax(logits, -1).gather(1, ids[0, first:, None])
            found.append(logps.sum())
    return torch.stack(found)


def scored_tokens(groups: Sequence[PromptGroup]) -> np.ndarray:
    """Return the tokens of every completion, int ``[completions]``."""
    return np.array([len(side) for group in groups for side in group.completions])


def autocast(device: str, *, low: bool) -> torch.autocast:
    """Compute within it in bf16 over fp32 weights, as a stage does, where ``low``."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=low)


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def clock(device: str) -> float:
    """Return the seconds of a clock, after the device has done what it was given."""
    wait(device)
    return time.perf_counter()


def peak_bytes(device: str) -> int:
    """Return the most bytes taken of the device since :func:`reset_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def reset_peak(device: str) -> int:
    """Begin to count anew; return the bytes that are allocated now, 0 on a CPU."""
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()
