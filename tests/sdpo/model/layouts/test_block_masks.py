"""The mask that FlexAttention gets is the rule of the row, and takes no matrix of all tokens."""

import tracemalloc
import warnings
from functools import partial
from itertools import product

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

SHAPES = [(1, 1, 4), (1, 10, 30), (3, 1, 200), (5, 20, 90), (4, 100, 400), (12, 1, 60)]


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
def test_flex_attention_under_the_mask_gives_what_the_cpu_kernel_gives_and_its_gradients(
    layout, window, monkeypatch
):
    # On a CPU torch refuses a backward pass that would be compiled, and with it this one, which
    # is not.
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    on_cpu = row(layout, 3, 5, 120, device="cpu")
    for_gpu = row(layout, 3, 5, 120)
    tokens, padded = len(on_cpu.positions), len(for_gpu.positions)
    torch.manual_seed(0)
    given = [torch.randn(1, heads, padded, 16, requires_grad=True) for heads in (4, 2, 2)]
    weights = torch.randn(1, tokens, 4, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it is slow when it is not compiled
        flexed = torch_flex.flex_attention(
            *given, block_mask=for_gpu.block_mask(window), enable_gqa=True
        ).transpose(1, 2)[:, :tokens]
        flexed_gradients = torch.autograd.grad((flexed * weights).sum(), given)
    ours, _ = segmented_attention(
        torch.nn.Identity(),
        *(t[:, :, :tokens] for t in given),
        None,
        segments=on_cpu,
        sliding_window=window,
    )
    torch.testing.assert_close(flexed, ours, rtol=1e-5, atol=1e-5)
    for flex, own in zip(
        flexed_gradients, torch.autograd.grad((ours * weights).sum(), given), strict=True
    ):
        torch.testing.assert_close(flex, own, rtol=1e-4, atol=1e-5)


VARIANTS = list(product((torch.float32, torch.bfloat16, torch.float64), (2, 4), (None, 40)))
"""Dtypes, heads of keys, windows: each has a graph of its own, and torch makes 8."""


@pytest.fixture
def compiled_on_a_cpu(monkeypatch):
    """FlexAttention goes through torch's compiler as on a GPU, up to the code that is made."""
    assert len(VARIANTS) > torch._dynamo.config.recompile_limit
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    attention._compiled_flex.cache_clear()
    yield
    attention._compiled_flex.cache_clear()
    torch._dynamo.reset()


def flex_of(dtype, heads, window) -> torch.Tensor:
    segments = row("shared", 2, 5, 60)
    length = len(segments.positions)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, length, 16, dtype=dtype) for n in (4, heads, heads))
    with torch.no_grad():
        return attention._flex(query, key, value, segments, None, window)


def test_more_graphs_of_flex_attention_than_torch_allows_are_compiled(compiled_on_a_cpu):
    for variant in VARIANTS:
        assert flex_of(*variant).isfinite().all()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > torch._dynamo.config.recompile_limit


def test_past_the_limit_of_graphs_it_is_an_error_and_not_the_scores_of_all_with_all(
    compiled_on_a_cpu, monkeypatch
):
    monkeypatch.setattr(attention, "_MOST_GRAPHS", 1)
    flex_of(*VARIANTS[0])
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        flex_of(*VARIANTS[-1])


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
