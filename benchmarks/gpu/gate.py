"""Part 2: what the gate sees in bf16, so that its tolerance can be as tight as the noise allows.

The cache holds what scoring computed, many pairs in a forward; the gate computes pairs alone. Both
are the same sums in another order, and differ by rounding, which grows with the root of the tokens.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import models
from benchmarks.gpu.findings import Finding, Settings
from sdpo.gate import tolerance
from sdpo.layouts import PromptGroup
from sdpo.logps import SequenceScorer
from tests.bench.shapes import Shape

_LAYERS = 24
_SPARE = 3.0
"""The tolerance that is suggested, over the largest difference that was seen."""


def run(settings: Settings) -> Iterator[Finding]:
    """Score pairs in micro-batches and alone, and compare; see the module."""
    shape = _deep(models.checked_shape(settings), layers=2 if settings.tiny else _LAYERS)
    model = models.llama(shape, device=settings.device, seed=settings.seed).eval()
    scorer = SequenceScorer(model)
    rng = np.random.default_rng(settings.seed)
    count, longest = (8, 60) if settings.tiny else (192, 500)
    groups = models.pairs(count, shortest=20, longest=longest, vocabulary=shape.vocabulary, rng=rng)
    tokens = models.scored_tokens(groups)
    with torch.no_grad():
        exact = models.plain_logps(model, groups, device=settings.device).cpu().numpy()
    for layout in ("shared", "padded"):
        cached = _scored(settings, scorer, layout, groups, together=16, low=True)
        alone = _scored(settings, scorer, layout, groups, together=1, low=True)
        seen = np.abs(alone - cached) / np.sqrt(tokens)
        error = np.abs(alone - exact) / np.sqrt(tokens)
        worst = float(seen.max())
        allowed = float(tolerance(np.array([0.0]), np.array([1]), precision="bf16")[0])
        yield Finding(
            what=f"the gate in bf16, layout {layout}, {2 * count} sides",
            seen=f"alone against cached: median {np.median(seen):.4f}, 99% "
            f"{np.quantile(seen, 0.99):.4f}, largest {worst:.4f} nats per root of tokens; bf16 "
            f"against fp32: largest {error.max():.4f}; its tolerance is {allowed:g}, three times "
            f"the noise is {_SPARE * worst:.4f}",
            ok=worst < allowed,
            numbers={
                "median": float(np.median(seen)),
                "q99": float(np.quantile(seen, 0.99)),
                "largest": worst,
                "bf16_error": float(error.max()),
                "tolerance": allowed,
                "suggested": _SPARE * worst,
            },
        )


def _deep(shape: Shape, *, layers: int) -> Shape:
    fields = {name: getattr(shape, name) for name in Shape.__slots__}
    return Shape(**fields | {"layers": layers})


@torch.no_grad()
def _scored(
    settings: Settings,
    scorer: Callable[..., torch.Tensor],
    layout: str,
    groups: list[PromptGroup],
    *,
    together: int,
    low: bool,
) -> np.ndarray:
    """Log-probs with so many pairs ``together`` in a forward, those of like length."""
    order = np.argsort([-len(g.prompt) - sum(map(len, g.completions)) for g in groups])
    found = np.empty((len(groups), 2))
    for start in range(0, len(groups), together):
        items = order[start : start + together]
        batch = models.batch_of(layout, [groups[i] for i in items], device=settings.device)
        with models.autocast(settings.device, low=low):
            logps: Any = scorer(batch)
        found[items] = logps.double().cpu().numpy().reshape(-1, 2)
    return found.reshape(-1)
