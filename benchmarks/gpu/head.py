"""Go on with part 5: measure the output head alone, whose chunks a model's own time hides."""

from collections.abc import Iterator

import torch

from benchmarks.gpu import models
from benchmarks.gpu.findings import Finding, Settings
from sdpo.model.chunked_head import target_logps

_REPEATED = 3
_MOST = {False: 1e-4, True: 2e-2}
"""Log-probs and gradients may differ by such shares of their norms, by whether they are in bf16."""


def head(settings: Settings, rate: float) -> Iterator[Finding]:
    """Compare log-probs and gradients in chunks with the whole softmax in fp32, and time them.

    ``rate``: FLOP/s of matrix products.
    """
    rows, width, vocabulary = (5000, 32, 2000) if settings.tiny else (12288, 2048, 128256)
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    made = {"device": settings.device, "generator": generator}
    states = torch.randn(rows, width, **made)
    weight = torch.randn(vocabulary, width, **made).mul_(0.05).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), **made)
    gradient = torch.randn(rows, **made)
    for low in (False, True):
        hidden = states.to(torch.bfloat16 if low else torch.float32).requires_grad_()
        apart = _apart(hidden, weight, targets, gradient, low=low)
        held = models.reset_peak(settings.device)
        seconds = min(_timed(settings, hidden, weight, targets, gradient) for _ in range(_REPEATED))
        peak = models.peak_bytes(settings.device) - held
        products = 8 * rows * width * vocabulary / rate
        names = ("log-probs", "gradients of states", "gradients of the head")
        told = ", ".join(f"{name} {size:.1e}" for name, size in zip(names, apart, strict=True))
        yield Finding(
            what=f"the head alone, {rows:,} rows of {vocabulary:,}, {'bf16' if low else 'fp32'}",
            seen=f"against the whole softmax in fp32: {told} of their norm; forward and backward "
            f"{seconds * 1e3:,.1f} ms, of which products are {products * 1e3:,.1f} ms at their "
            f"rate in {'fp32' if settings.device == 'cpu' else 'bf16'}; {peak / 1e9:.1f} GB",
            ok=max(apart) < _MOST[low],
            numbers={"apart": apart, "seconds": seconds, "peak_bytes": peak},
        )


def _gradients(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    logps = target_logps(hidden, weight, targets)
    return logps.detach(), *torch.autograd.grad(logps, (hidden, weight), gradient)


def _timed(settings: Settings, *given: torch.Tensor) -> float:
    start = models.clock(settings.device)
    _gradients(*given)
    return models.clock(settings.device) - start


def _apart(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    gradient: torch.Tensor,
    *,
    low: bool,
) -> list[float]:
    """Return the distances from the whole softmax of the same numbers, as shares of its norms."""
    found = _gradients(hidden, weight, targets, gradient)
    states = hidden.detach().float().requires_grad_()
    kernel = (weight.detach().bfloat16().float() if low else weight.detach()).requires_grad_()
    logps = torch.log_softmax(states @ kernel.T, -1).gather(1, targets[:, None]).squeeze(1)
    exact = (logps.detach(), *torch.autograd.grad(logps, (states, kernel), gradient))
    return [
        float((ours.float() - plain).norm() / plain.norm())
        for ours, plain in zip(found, exact, strict=True)
    ]
