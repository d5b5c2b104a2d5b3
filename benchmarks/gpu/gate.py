"""Run part 2: see by how much log-probs differ in bf16, and whether the gate allows for it.

The cache holds what scoring computed, many pairs in a forward; the gate computes pairs alone, and
as they are trained. All are the same sums in another order, and differ by rounding, which grows
with the root of the tokens. The gate is right where cached rows that are not stale pass.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import models
from benchmarks.gpu.findings import Finding, Settings
from benchmarks.shapes import Shape
from sdpo.model.layouts import PromptGroup
from sdpo.model.sequence_scorer import SequenceScorer
from sdpo.training import gate

_LAYERS = 24


def run(settings: Settings) -> Iterator[Finding]:
    """Score pairs in micro-batches, as they are trained, and alone; see the module."""
    shape = _deep(models.checked_shape(settings), layers=2 if settings.tiny else _LAYERS)
    rng = np.random.default_rng(settings.seed)
    count, longest = (8, 60) if settings.tiny else (96, 500)
    groups = models.pairs(count, shortest=20, longest=longest, vocabulary=shape.vocabulary, rng=rng)
    for sharp in (False, True):
        model = models.llama(shape, device=settings.device, seed=settings.seed, sharp=sharp).eval()
        logits = "logits as sharp as a trained model's" if sharp else "flat logits"
        for layout in ("shared", "padded") if sharp else ("shared",):
            yield _compared(settings, model, layout, groups, logits)


def _compared(
    settings: Settings, model: Any, layout: str, groups: list[PromptGroup], logits: str
) -> Finding:
    scorer, roots = SequenceScorer(model), np.sqrt(models.scored_tokens(groups))
    some = {
        together: _scored(settings, scorer, layout, groups, together=together)
        for together in (1, 11, 16)
    }
    with torch.no_grad():
        few = groups[:24]
        exact = models.plain_logps(model, few, device=settings.device).cpu().numpy()
    error = np.abs(some[1][: len(exact)] - exact) / roots[: len(exact)]
    noise = np.abs(some[11] - some[1]) / roots
    cached = np.abs(some[16] - some[1]) / roots
    measured = gate.Noise(float(noise.max()), float(np.sqrt(np.square(noise).mean())))
    allowed = float(
        gate.tolerance(np.array([0.0]), np.array([1]), precision="bf16", noise=measured)[0]
    )
    spread = float(np.sqrt(np.square(cached).mean()))
    return Finding(
        what=f"the gate in bf16, layout {layout}, {logits}, {len(roots)} sides",
        seen=f"cached against alone: median {np.median(cached):.4f}, 99% "
        f"{np.quantile(cached, 0.99):.4f}, largest {cached.max():.4f}, root mean square "
        f"{spread:.4f} nats per root of tokens; as trained against alone, which sets the "
        f"tolerance: largest {measured.largest:.4f}, root mean square "
        f"{measured.root_mean_square:.4f}; allowed {allowed:.4f}; bf16 against fp32: largest "
        f"{error.max():.4f}",
        ok=bool(cached.max() < allowed and spread <= max(0.015, 2 * measured.root_mean_square)),
        numbers={
            "median": float(np.median(cached)),
            "q99": float(np.quantile(cached, 0.99)),
            "largest": float(cached.max()),
            "root_mean_square": spread,
            "noise_largest": measured.largest,
            "noise_root_mean_square": measured.root_mean_square,
            "allowed": allowed,
            "bf16_error": float(error.max()),
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
) -> np.ndarray:
    """Return log-probs, float64 ``[sides]`` in nats.

    ``together``: how many pairs, of like length, are in a forward.
    """
    order = np.argsort([-len(g.prompt) - sum(map(len, g.completions)) for g in groups])
    found = np.empty((len(groups), 2))
    for start in range(0, len(groups), together):
        items = order[start : start + together]
        batch = models.batch_of(layout, [groups[i] for i in items], device=settings.device)
        with models.autocast(settings.device, low=True):
            logps: Any = scorer(batch)
        found[items] = logps.double().cpu().numpy().reshape(-1, 2)
    return found.reshape(-1)
