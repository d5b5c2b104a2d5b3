"""Run part 1: compare values and gradients of every layout with plain transformers.

They are compared in fp32 and in bf16. Packed and shared rows go through FlexAttention on a GPU; on
a CPU, whose kernel for them is another one, they go through both. It also looks at whether a side's
log-prob depends on its neighbours, what dtypes reach the kernel, whether gradients are the same
bits a second time, whether other shapes compile again and again, and what the mask of a long row
takes.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import models
from benchmarks.gpu.findings import Finding, Settings
from benchmarks.gpu.flex_on_cpu import flex_on_cpu
from sdpo.model.layouts import PromptGroup, attention
from sdpo.model.sequence_scorer import SequenceScorer
from sdpo.stages.repeatable import in_order

_LAYOUTS = ("padded", "packed", "shared")
_RTOL, _ATOL = 1e-5, 1e-3
"""A log-prob in fp32 may differ by so much, in nats: some hundred tokens are summed in another
order."""
_GRADIENTS = 1e-3
_LOW_SHARE = 1.5
"""In bf16 a distance may be so many times that of padded rows, which is what bf16 costs."""


def run(settings: Settings) -> Iterator[Finding]:
    """Compare, count and measure; see the module."""
    shape = models.checked_shape(settings)
    model = models.llama(shape, device=settings.device, seed=settings.seed)
    rng = np.random.default_rng(settings.seed)
    scorer = SequenceScorer(model).train()
    groups = models.pairs(4, shortest=40, longest=300, vocabulary=shape.vocabulary, rng=rng)
    yield from _values(settings, model, scorer, groups)
    if settings.device == "cpu":
        yield from _values(settings, model, scorer, groups[:2], flex=True)
    yield from _again(settings, model, scorer, vocabulary=shape.vocabulary)
    yield from _leaks(settings, scorer, groups, vocabulary=shape.vocabulary)
    yield from _recompiles(settings, scorer, vocabulary=shape.vocabulary)
    yield from _masks(settings, vocabulary=shape.vocabulary)
    yield from _flash(settings, model, groups)


Result = tuple[torch.Tensor, list[torch.Tensor]]


def _values(
    settings: Settings, model: Any, scorer: Any, groups: list[PromptGroup], *, flex: bool = False
) -> Iterator[Finding]:
    """Compare each layout with plain rows; ``flex``: by FlexAttention where that is no default."""
    oracle = _measured(model, lambda: models.plain_logps(model, groups, device=settings.device))
    counts = models.scored_tokens(groups)
    # In bf16 the error of padded rows is the yardstick of the others.
    yardstick: tuple[float, float] | None = None
    for low in (False, True):
        for layout in _LAYOUTS:
            by_flex = flex and layout != "padded"
            kernel: AbstractContextManager[None] = flex_on_cpu() if by_flex else nullcontext()
            forward = partial(_logps, settings, scorer, layout, groups, low=low, blocks=by_flex)
            with kernel, _spied() as seen:
                found = _measured(model, forward)
            values, gradients = _distance(found, oracle, counts)
            if low:
                limits = yardstick or (0.1, 0.1)
                ok = values <= _LOW_SHARE * limits[0] + 0.005
                ok = ok and gradients <= _LOW_SHARE * limits[1] + 0.005
                yardstick = yardstick or (values, gradients)
            else:
                difference = (found[0] - oracle[0]).abs()
                ok = bool((difference <= _RTOL * oracle[0].abs() + _ATOL).all())
                ok = ok and gradients <= _GRADIENTS
            if flex and not by_flex:
                continue
            dtypes = f"; FlexAttention gets {', '.join(sorted(seen))}" if seen else ""
            yield Finding(
                what=f"layout {layout}{' by FlexAttention' if by_flex else ''}, "
                f"{'bf16' if low else 'fp32'}, against plain fp32",
                seen=f"log-probs differ by {values:.1e} nats per root of tokens at most, gradients "
                f"by {gradients:.1e} of their norm{dtypes}",
                ok=ok,
                numbers={"nats_per_root_token": values, "gradient_distance": gradients},
            )


def _logps(
    settings: Settings,
    scorer: Any,
    layout: str,
    groups: list[PromptGroup],
    *,
    low: bool,
    blocks: bool = False,
) -> torch.Tensor:
    batch = models.batch_of(layout, groups, device=settings.device, blocks=blocks)
    with models.autocast(settings.device, low=low):
        logps: torch.Tensor = scorer(batch)
    return logps.double()


def _measured(model: Any, forward: Any) -> Result:
    """Return log-probs, and gradients of a sum in which each has a weight of its own."""
    parameters = list(model.parameters())
    logps = forward()
    weights = torch.linspace(1.0, -0.5, len(logps), dtype=torch.float64, device=logps.device)
    gradients = torch.autograd.grad((logps * weights).sum(), parameters)
    return logps.detach(), list(gradients)


def _distance(found: Result, oracle: Result, counts: np.ndarray) -> tuple[float, float]:
    """Return how far log-probs and gradients are apart.

    The first is the largest difference of a log-prob over the root of its tokens, in nats; the
    second the distance of the gradients as a share of their norm.
    """
    roots = torch.from_numpy(np.sqrt(counts)).to(found[0].device)
    values = float(((found[0] - oracle[0]).abs() / roots).max())
    pairs = list(zip(found[1], oracle[1], strict=True))
    apart = sum(float((ours - plain).double().square().sum()) for ours, plain in pairs)
    norm = sum(float(plain.double().square().sum()) for _, plain in pairs)
    return values, float(np.sqrt(apart / norm))


@contextmanager
def _spied() -> Iterator[set[str]]:
    """Collect the dtypes of query, key and value that FlexAttention gets; none: it is not used."""
    seen: set[str] = set()
    real = attention._flex

    def spy(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        seen.update(str(t.dtype).removeprefix("torch.") for t in (query, key, value))
        return real(query, key, value, *rest, **options)

    attention._flex = spy
    try:
        yield seen
    finally:
        attention._flex = real


def _again(settings: Settings, model: Any, scorer: Any, *, vocabulary: int) -> Iterator[Finding]:
    """Compare gradients in bf16 of the same pairs, computed three times.

    Those of padded rows are compared with and without the switch that a training sets.
    """
    rng = np.random.default_rng(settings.seed + 2)
    count, longest = (1, 60) if settings.tiny else (8, 600)
    groups = models.pairs(count, shortest=40, longest=longest, vocabulary=vocabulary, rng=rng)
    for layout, ordered in (
        ("padded", False),
        ("padded", True),
        ("packed", False),
        ("shared", False),
    ):
        forward = partial(_logps, settings, scorer, layout, groups, low=True)
        with in_order() if ordered else nullcontext():
            first, *others = (_measured(model, forward)[1] for _ in range(3))
        pairs = [pair for other in others for pair in zip(first, other, strict=True)]
        apart = max(float((one - two).abs().max()) for one, two in pairs)
        same = all(torch.equal(one, two) for one, two in pairs)
        how = "as a training has it" if ordered or layout != "padded" else "without the switch"
        yield Finding(
            what=f"gradients a second and third time, layout {layout}, {how}",
            seen="bit for bit the same" if same else f"differ by {apart:.1e} at most",
            ok=same or how == "without the switch",
            numbers={"bitwise": same, "largest_difference": apart},
        )


@torch.no_grad()
def _leaks(
    settings: Settings, scorer: Any, groups: list[PromptGroup], *, vocabulary: int
) -> Iterator[Finding]:
    """See how a side's log-prob moves where all other tokens change and lengths stay the same."""
    rng = np.random.default_rng(settings.seed + 1)
    kept = groups[1]

    def others(ids: np.ndarray) -> np.ndarray:
        return rng.integers(5, vocabulary, len(ids)).astype(np.int32)

    changed = [PromptGroup(others(g.prompt), tuple(map(others, g.completions))) for g in groups]
    for low in (False, True):
        worst = 0.0
        for layout in _LAYOUTS:
            before = _logps(settings, scorer, layout, groups, low=low)
            for side in (0, 1):
                sides = list(map(others, kept.completions))
                sides[side] = kept.completions[side]
                changed[1] = replace(kept, completions=tuple(sides))
                after = _logps(settings, scorer, layout, changed, low=low)
                worst = max(worst, float((after - before)[2 + side].abs()))
        yield Finding(
            what=f"a side alone counts, {'bf16' if low else 'fp32'}",
            seen=f"other tokens on all other sides move it by {worst:.1e} nats",
            ok=worst < 1e-3,
            numbers={"leak_nats": worst},
        )


def _recompiles(settings: Settings, scorer: Any, *, vocabulary: int) -> Iterator[Finding]:
    from torch._dynamo.utils import counters

    counters.clear()
    rng = np.random.default_rng(settings.seed + 2)
    seconds: list[float] = []
    graphs: list[float] = []
    for gradients in (False, True):
        for count in (3, 9, 1, 14, 6, 11, 2, 8, 5, 4, 12):
            groups = models.pairs(count, shortest=40, longest=300, vocabulary=vocabulary, rng=rng)
            start = models.clock(settings.device)
            with torch.set_grad_enabled(gradients):
                logps = _logps(settings, scorer, "shared", groups, low=True)
            if gradients:
                logps.sum().backward()
                scorer.zero_grad(set_to_none=True)
            seconds.append(models.clock(settings.device) - start)
            graphs.append(float(counters["stats"]["unique_graphs"]))
    late = graphs[-1] - graphs[-6]
    yield Finding(
        what="22 batches of other shapes",
        seen=f"{graphs[-1]:.0f} more graphs were compiled, {late:.0f} in the last five calls; "
        f"slowest call {max(seconds):.1f} s, median {np.median(seconds):.3f} s",
        ok=late == 0,
        numbers={"graphs": graphs, "seconds": seconds},
    )


def _masks(settings: Settings, *, vocabulary: int) -> Iterator[Finding]:
    rng = np.random.default_rng(settings.seed + 3)
    for tokens in (2048,) if settings.tiny else (16384, 65536):
        groups: list[PromptGroup] = []
        total = 0
        while total < tokens - 1500:
            groups += models.pairs(1, shortest=100, longest=450, vocabulary=vocabulary, rng=rng)
            total += len(groups[-1].prompt) + sum(map(len, groups[-1].completions))
        # Laid out for a GPU on any device: the mask is the same, whole blocks of 128 tokens.
        segments = models.batch_of("shared", groups, device=settings.device, blocks=True).segments
        assert segments is not None
        held = models.reset_peak(settings.device)
        start = models.clock(settings.device)
        mask = segments.block_mask(None)
        seconds = models.clock(settings.device) - start
        parts = [value for value in vars(mask).values() if isinstance(value, torch.Tensor)]
        kept = sum(part.numel() * part.element_size() for part in parts)
        peak = max(models.peak_bytes(settings.device) - held, kept)
        length = len(segments.positions)
        yield Finding(
            what=f"block mask of {length:,} tokens",
            seen=f"{seconds * 1e3:.0f} ms, {peak / 1e6:,.1f} MB at most",
            ok=peak < 64e6,
            numbers={"tokens": length, "seconds": seconds, "peak_bytes": peak},
        )


def _flash(settings: Settings, model: Any, groups: list[PromptGroup]) -> Iterator[Finding]:
    if settings.device == "cpu" or importlib.util.find_spec("flash_attn") is None:
        why = "needs a GPU" if settings.device == "cpu" else "there is no wheel of it here"
        yield Finding(what="flash-attn", seen=f"not measured: {why}")
        return
    model.set_attn_implementation("flash_attention_2")
    model._sdpo_attention = "flash_attention_2"
    scorer = SequenceScorer(model).eval()
    oracle = models.plain_logps(model.float(), groups, device=settings.device)
    ours = _logps(settings, scorer, "packed", groups, low=True)
    apart = (ours - oracle).abs().detach().cpu().numpy() / np.sqrt(models.scored_tokens(groups))
    yield Finding(
        what="flash-attn, layout packed, bf16",
        seen=f"log-probs differ by {apart.max():.1e} nats per root of tokens at most",
        ok=bool(apart.max() < 0.1),
        numbers={"nats_per_root_token": float(apart.max())},
    )
