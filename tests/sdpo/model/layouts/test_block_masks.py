"""The mask that FlexAttention gets is the rule of the row, and takes no matrix of all tokens."""

import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from sdpo.model.layouts import LAYOUTS, PromptGroup, attention
from sdpo.model.layouts.attention import segmented_attention
from sdpo.model.layouts.block_masks import BLOCK
from sdpo.model.layouts.segments import Segments
from sdpo.model.sequence_scorer import SequenceScorer

from ...training_helpers.layouts import pairs, small_model

SHAPES = [(1, 1, 4), (1, 10, 30), (3, 1, 200), (5, 20, 90), (7, 100, 400), (12, 1, 60)]


def groups(count: int, shortest: int, longest: int, *, seed: int, sides: int = 2):
    rng = np.random.default_rng(seed)

    def tokens() -> np.ndarray:
        return rng.integers(0, 9, int(rng.integers(shortest, longest))).astype(np.int32)

    return [PromptGroup(tokens(), tuple(tokens() for _ in range(sides))) for _ in range(count)]


def row(layout: str, *shape: int, seed: int = 1, device: str = "cuda", sides: int = 2) -> Segments:
    """A row as it is laid out for ``device``; its tensors are on the CPU."""
    made = groups(*shape, seed=seed, sides=sides)
    segments = LAYOUTS[layout].collate(made, pad_token_id=0, device=device).segments
    assert segments is not None
    return segments


def dense(mask: object, tokens: int) -> torch.Tensor:
    """What a block mask lets through: the rule inside partial blocks, all of whole ones."""
    found = torch.zeros(tokens, tokens, dtype=torch.bool)
    every = torch.arange(tokens)
    rule = mask.mask_mod(torch.tensor(0), torch.tensor(0), every[:, None], every[None])
    counted = (
        (mask.kv_num_blocks, mask.kv_indices, False),
        (mask.full_kv_num_blocks, mask.full_kv_indices, True),
    )
    for counts, indices, whole in counted:
        for block in range(tokens // BLOCK):
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            for other in indices[0, 0, block, : counts[0, 0, block]].tolist():
                columns = slice(other * BLOCK, (other + 1) * BLOCK)
                assert not found[rows, columns].any(), "a block stands in both lists"
                found[rows, columns] = True if whole else rule[rows, columns]
    return found


@pytest.mark.parametrize("window", [None, 1, 17, 130, 5000])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_the_block_mask_lets_through_what_the_rule_allows(layout, shape, window):
    segments = row(layout, *shape)
    tokens = len(segments.positions)
    assert tokens % BLOCK == 0
    assert torch.equal(dense(segments.block_mask(window), tokens), segments.allowed(window))


def test_a_row_of_single_completions_has_its_mask_too():
    segments = row("shared", 4, 3, 90, sides=1)
    assert torch.equal(
        dense(segments.block_mask(None), len(segments.positions)), segments.allowed()
    )


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_flex_attention_under_the_mask_gives_what_the_cpu_kernel_gives(layout, window):
    on_cpu = row(layout, 3, 5, 120, device="cpu")
    for_gpu = row(layout, 3, 5, 120)
    tokens, padded = len(on_cpu.positions), len(for_gpu.positions)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, padded, 16) for heads in (4, 2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is slow when it is not compiled
        flexed = torch_flex.flex_attention(
            query, key, value, block_mask=for_gpu.block_mask(window), enable_gqa=True
        )
    ours, _ = segmented_attention(
        torch.nn.Identity(),
        *(t[:, :, :tokens] for t in (query, key, value)),
        None,
        segments=on_cpu,
        sliding_window=window,
    )
    torch.testing.assert_close(flexed.transpose(1, 2)[:, :tokens], ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_a_model_in_bf16_reaches_flex_attention_in_bf16_and_keeps_its_log_probs(
    layout, monkeypatch
):
    reached: list[torch.dtype] = []

    def flex(query, key, value, segments, scale, _dropout, window):
        reached.extend(tensor.dtype for tensor in (query, key, value))
        out = attention._flex(query, key, value, segments, scale, window)
        return out.transpose(1, 2)

    scorer = SequenceScorer(small_model("llama"))
    given = pairs(4)
    with torch.no_grad():
        exact = scorer(LAYOUTS["padded"].collate(given, pad_token_id=0, device="cpu"))
    monkeypatch.setattr(attention, "_compiled_flex", lambda: torch_flex.flex_attention)
    monkeypatch.setattr(attention, "_on_cpu", flex)
    as_on_a_gpu = LAYOUTS[layout].collate(given, pad_token_id=0, device="cuda")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is slow when it is not compiled
        logps = scorer(as_on_a_gpu)
    assert set(reached) == {torch.bfloat16}
    assert len(reached) == 6, "of two layers"
    torch.testing.assert_close(logps, exact, rtol=2e-2, atol=0.3)


def test_the_mask_of_16k_tokens_takes_memory_by_tokens_and_blocks_alone(monkeypatch):
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("this makes a matrix of all tokens with all tokens")

    monkeypatch.setattr(torch_flex, "create_block_mask", forbidden)
    segments = row("shared", 24, 150, 300)
    tokens = len(segments.positions)
    assert tokens > 14_000
    tracemalloc.start()
    mask = segments.block_mask(4096)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    parts = [part for part in vars(mask).values() if isinstance(part, torch.Tensor)]
    kept = sum(part.numel() * part.element_size() for part in parts)
    # Not the 3.6 GB of a dense mask: some numbers a token, and some for each block with each block.
    assert peak + kept < 200 * tokens + 100 * (tokens // BLOCK) ** 2


def test_rows_of_every_batch_share_the_code_of_their_rule():
    rules = [row("shared", 2, 5, 50, seed=seed).block_mask(None).mask_mod for seed in (1, 2)]
    assert rules[0].__code__ is rules[1].__code__
