"""Compute norm, gated MLP and rotary embedding of Llama-like models with own backward passes.

On a CPU the matrix products of a small model are half of its time; most of the rest is element-wise
work that autograd splits into many passes and many saved tensors. These functions do the same
arithmetic in fewer of both. They stand in for a model's own modules only where these are known and
were seen to give the same values; they serve fp32 on a CPU alone, and anything else takes the
model's own code.
"""

import math
import sys
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from sdpo.model.kinds import Context, Gradients, Option
from sdpo.model.patches import (
    bind_forward,
    has_own_forward,
    parameters_within,
    replace_function,
)
from sdpo.model.shares import is_divided, whole
from sdpo.system.out_of_memory import is_out_of_memory

_SIZES = (1e-4, 1e-2, 1.0, 1e2, 1e4)
"""A module's own code and what stands in for it are compared on numbers of these sizes."""


_Forward = Callable[..., torch.Tensor]


class _Norm(Protocol):
    """A norm is a module of this form, for which :func:`rms_norm` can stand in."""

    weight: torch.Tensor
    variance_epsilon: float


class _GateUpDown(Protocol):
    """A gated MLP is a module of this form, for which :func:`gated_mlp` can stand in."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear


class _RMSNorm(torch.autograd.Function):
    """RMSNorm is ``weight * x / rms(x)``; it saves x and one number per row (arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Context, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        scale = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Context, *gradients: torch.Tensor) -> Gradients:
        x, weight, scale = ctx.saved_tensors
        gradient = gradients[0]
        normed = x * scale
        product = gradient * normed
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = product.sum(tuple(range(x.dim() - 1)))
        # The gradient of a transposed view has strides of its own, and so has the product.
        mean = torch.mv(product.reshape(-1, x.shape[-1]), weight).div_(x.shape[-1])
        grad = torch.mul(gradient, weight, out=product)
        grad.addcmul_(normed, mean.view(*x.shape[:-1], 1), value=-1).mul_(scale)
        return grad, weight_grad, None


class _SiluGate(torch.autograd.Function):
    """The gate is ``silu(gate) * up`` (arXiv 2002.05202); it saves its inputs alone."""

    @staticmethod
    def forward(ctx: Context, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Context, *gradients: torch.Tensor) -> Gradients:
        gate, up = ctx.saved_tensors
        gradient = gradients[0]
        up_grad = functional.silu(gate).mul_(gradient)
        gate_grad = torch.ops.aten.silu_backward(gradient * up, gate)
        return gate_grad, up_grad


class _GatedMLP(torch.autograd.Function):
    """The MLP is ``(silu(x Wg') * (x Wu')) Wd'``; it saves x and the two inner products alone.

    What is not saved is a sixth of all that a Llama's layer keeps for its backward pass.
    """

    @staticmethod
    def forward(
        ctx: Context, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
    ) -> torch.Tensor:
        gated, raised = functional.linear(x, gate), functional.linear(x, up)
        ctx.save_for_backward(x, gated, raised, gate, up, down)
        return functional.linear(functional.silu(gated).mul_(raised), down)

    @staticmethod
    def backward(ctx: Context, *gradients: torch.Tensor) -> Gradients:
        saved = ctx.saved_tensors  # recomputation lets them be read once
        shape = saved[0].shape
        x, gated, raised, gate, up, down = (t.flatten(0, -2) for t in saved)
        wants_x, *wants = ctx.needs_input_grad
        gradient = gradients[0].flatten(0, -2)
        inner = gradient @ down
        activated = functional.silu(gated)
        down_grad = gradient.T @ (activated * raised) if wants[2] else None
        raised_grad = activated.mul_(inner)
        gated_grad = torch.ops.aten.silu_backward(inner.mul_(raised), gated)
        gate_grad = gated_grad.T @ x if wants[0] else None
        up_grad = raised_grad.T @ x if wants[1] else None
        x_grad = None
        if wants_x:
            x_grad = (gated_grad @ gate).addmm_(raised_grad, up).view(shape)
        return x_grad, gate_grad, up_grad, down_grad


class _Rotary(torch.autograd.Function):
    """Each head's two halves are rotated (arXiv 2104.09864); cosine and sine alone are saved."""

    @staticmethod
    def forward(
        ctx: Context, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        out[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return out

    @staticmethod
    def backward(ctx: Context, *gradients: torch.Tensor) -> Gradients:
        cos, sin = ctx.saved_tensors
        gradient = gradients[0]
        half = gradient.shape[-1] // 2
        grad = gradient * cos
        grad[..., :half].addcmul_(gradient[..., half:], sin[..., half:])
        grad[..., half:].addcmul_(gradient[..., :half], sin[..., :half], value=-1)
        return grad, None, None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return ``weight * x / sqrt(mean(x^2) + eps)``, the mean taken over the last dimension."""
    out: torch.Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def silu_gate(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return ``silu(gate) * up``, element by element."""
    out: torch.Tensor = _SiluGate.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


def gated_mlp(
    x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Return ``down(silu(gate(x)) * up(x))`` for weights as in ``nn.Linear``, without biases."""
    out: torch.Tensor = _GatedMLP.apply(x, gate, up, down)  # type: ignore[no-untyped-call]
    return out


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate ``x`` ``[..., width]`` by ``cos`` and ``sin``, which broadcast to it."""
    out: torch.Tensor = _Rotary.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return out


def fuse(model: nn.Module) -> list[str]:
    """Let ``model`` use these functions where its own are known; return the names of those in use.

    A module keeps its parameters and its place, so adapters, wrappers and publication do not
    notice.
    """
    groups = [module for module in model.modules() if is_divided(module)]
    within = {module for group in groups for module in group.modules()}
    norms = gates = 0
    for group in groups:
        with whole(group):
            norms += _fuse_norms(group.modules())
            gates += _fuse_gates(group.modules())
    others = [module for module in model.modules() if module not in within]
    norms, gates = norms + _fuse_norms(others), gates + _fuse_gates(others)
    found = {"norm": norms, "gate": gates, "rotary": _fuse_rotary(model)}
    return [name for name, count in found.items() if count]


def _plain(x: torch.Tensor) -> bool:
    """Return whether these functions serve: fp32 on a CPU, no autocast, no compiler's trace."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _fuse_norms(modules: Iterable[nn.Module]) -> int:
    count = 0
    for module in modules:
        own = type(module).forward
        weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        known = type(module).__name__.endswith("RMSNorm") and isinstance(eps, float)
        known = known and parameters_within(module, ("weight",))
        if not known or not isinstance(weight, torch.Tensor) or has_own_forward(module):
            continue

        def forward(self: _Norm, x: torch.Tensor, _own: _Forward = own) -> torch.Tensor:
            return rms_norm(x, self.weight, self.variance_epsilon) if _plain(x) else _own(self, x)

        if _same(module, forward, weight.shape[-1]):
            bind_forward(module, forward)
            count += 1
    return count


def _fuse_gates(modules: Iterable[nn.Module]) -> int:
    count = 0
    for module in modules:
        own = type(module).forward
        names = ("gate_proj", "up_proj", "down_proj")
        if not all(isinstance(_below(getattr(module, name, None)), nn.Linear) for name in names):
            continue
        silu = type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation")
        if not silu or has_own_forward(module) or not parameters_within(module, names):
            continue

        def forward(self: _GateUpDown, x: torch.Tensor, _own: _Forward = own) -> torch.Tensor:
            if not _plain(x):
                return _own(self, x)
            projections = (self.gate_proj, self.up_proj, self.down_proj)
            if all(map(_is_bare, projections)):
                return gated_mlp(x, *(p.weight for p in projections))
            inner = silu_gate(self.gate_proj(x), self.up_proj(x))  # adapters
            down: torch.Tensor = self.down_proj(inner)
            return down

        if _same(module, forward, _width(module)):
            bind_forward(module, forward)
            count += 1
    return count


def _below(module: nn.Module | None) -> nn.Module | None:
    """Return the module below an adapter, or that trains in its place, or ``module`` itself."""
    copies = getattr(module, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict):
        return copies["default"]
    below = getattr(module, "base_layer", module)
    return below if isinstance(below, nn.Module) else None


def _is_bare(module: nn.Module) -> bool:
    """Return whether a module is its weight and nothing else: no adapter, no bias, no hooks."""
    return (
        type(module) is nn.Linear
        and getattr(module, "bias", None) is None
        and not has_own_forward(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


@torch.no_grad()
def _same(module: nn.Module, forward: _Forward, width: int) -> bool:
    """Return whether ``forward`` gives what the module's own does, for numbers of all sizes.

    An architecture may clamp what is large, or add to what is small: a formula that agrees
    near 1 may be another one.
    """
    parameter = next(module.parameters())
    if not _plain(parameter) or parameter.numel() == 0:
        return False
    near_one = torch.linspace(-3, 3, 4 * width).view(1, 4, width)
    x = torch.tensor(_SIZES).view(-1, 1, 1) * near_one  # at once: weights are read once, not often
    for theirs, ours in zip(module(x), forward(module, x), strict=True):
        most = float(theirs.abs().max())
        if not math.isfinite(most):
            return False  # damaged weights, which the head's check names
        if not torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6 * most):
            return False
    return True


def _width(module: nn.Module) -> int:
    gate = _below(module.get_submodule("gate_proj"))
    return int(gate.in_features) if isinstance(gate, nn.Linear) else 0


def _fuse_rotary(model: nn.Module) -> int:
    """Replace the function in the module in which the architecture's code looks it up."""
    code = sys.modules[type(model).__module__]
    own = getattr(code, "apply_rotary_pos_emb", None)
    if own is None:
        return 0
    if hasattr(own, "sdpo_own"):
        return 1

    def apply_rotary_pos_emb(
        *given: torch.Tensor, **named: Option
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fits = len(given) == 4 and not named and _plain(given[0]) and _plain(given[1])
        if not fits or given[0].dim() != 4 or given[2].shape[-1] != given[0].shape[-1]:
            rotated: tuple[torch.Tensor, torch.Tensor] = own(*given, **named)
            return rotated
        q, k, cos, sin = given
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return rotate(q, cos, sin), rotate(k, cos, sin)

    x, angle = torch.linspace(-3, 3, 64).view(1, 2, 4, 8), torch.linspace(0, 9, 32).view(1, 4, 8)
    try:
        theirs, ours = (f(x, x, angle.cos(), angle.sin()) for f in (own, apply_rotary_pos_emb))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        return 0
    if not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(theirs, ours, strict=True)):
        return 0
    apply_rotary_pos_emb.sdpo_own = own  # type: ignore[attr-defined]
    replace_function(code, "apply_rotary_pos_emb", apply_rotary_pos_emb)
    return 1
