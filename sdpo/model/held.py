"""Hold the base under adapters in fewer bytes: its linear layers in bf16, int8 or NF4.

The base never trains, so its weights may be rounded: what is trained, scored and published is then
Q(base) + adapter. A layer keeps its rounded weight and multiplies by it as a full matrix, made anew
in every forward and backward pass: no product depends on the rows beside it or on the device's
kernel for few of them. The output head, embeddings and norms stay fp32, as in bitsandbytes' own
conversion of a model, whose numbers these are (NF4: blocks of 64, arXiv 2305.14314; int8: rows,
arXiv 2208.07339, of the weights alone).
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdpo.errors import ModelError
from sdpo.model.kinds import Context, Gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK = 64


class HeldLinear(nn.Linear, ABC):
    """A held layer is ``x W^T + b`` with a rounded W, which its tensors are the parts of.

    ``weight`` is W whole, fp32, made when it is asked for; it is no parameter. ``held`` and
    ``scales``, where there are any, are what W is made from.
    """

    held: torch.Tensor
    scales: torch.Tensor

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_parameter("bias", layer.bias)
        self.keep(layer.weight.detach().float())

    @abstractmethod
    def keep(self, weight: torch.Tensor) -> None:
        """Round ``weight``, fp32 ``[out, in]``, and :meth:`hold` its parts."""

    @abstractmethod
    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the rounded weight, ``[out, in]``."""

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Return the rounded weight, fp32 ``[out, in]``."""
        return self.whole(torch.float32)

    def hold(self, name: str, part: torch.Tensor) -> None:
        """Keep a part of the rounded weight, which moves with the module and never trains."""
        self.register_parameter(name, nn.Parameter(part, requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x W^T + b`` for ``x`` ``[..., in]``, in autocast's dtype or that of ``x``."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        out: torch.Tensor = _HeldProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _HeldProduct(torch.autograd.Function):
    """The product keeps neither x nor a whole weight for its backward pass."""

    @staticmethod
    def forward(ctx: Context, x: torch.Tensor, layer: HeldLinear) -> torch.Tensor:
        ctx.layer = layer  # type: ignore[attr-defined]
        return nn.functional.linear(x, layer.whole(x.dtype))

    @staticmethod
    def backward(ctx: Context, *gradients: torch.Tensor) -> Gradients:
        gradient, layer = gradients[0], ctx.layer  # type: ignore[attr-defined]
        return gradient @ layer.whole(gradient.dtype), None


class _InBf16(HeldLinear):
    """A layer holds its weight in bf16: 2 bytes each."""

    def keep(self, weight: torch.Tensor) -> None:
        self.hold("held", weight.to(torch.bfloat16))

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        return self.held.to(dtype)


class _InInt8(HeldLinear):
    """A layer holds its weight in int8, with a scale a row: 1 byte each."""

    def keep(self, weight: torch.Tensor) -> None:
        from bitsandbytes.functional import int8_vectorwise_quant

        held, scales, _ = int8_vectorwise_quant(weight.half())
        self.hold("held", held)
        self.hold("scales", scales.float())

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        return (self.held.float() * (self.scales / 127)[:, None]).to(dtype)


class _InNf4(HeldLinear):
    """A layer holds its weight in NF4, with an fp32 scale for 64 of them: 0.5625 bytes each."""

    def keep(self, weight: torch.Tensor) -> None:
        from bitsandbytes.functional import quantize_4bit

        held, state = quantize_4bit(weight.contiguous(), blocksize=_BLOCK, quant_type="nf4")
        self.hold("held", held)
        self.hold("scales", state.absmax)

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            dtype=dtype,
            blocksize=_BLOCK,
            quant_type="nf4",
        )
        whole: torch.Tensor = dequantize_4bit(self.held, state)
        return whole


_KINDS: dict[str, type[HeldLinear]] = {"bf16": _InBf16, "int8": _InInt8, "nf4": _InNf4}


@torch.no_grad()
def hold_base(
    model: "PreTrainedModel", precision: str, *, unchanged: bool = False
) -> "PreTrainedModel":
    """Hold the linear layers of ``model``, the output head aside, in ``precision``, in place.

    Nothing of ``model`` trains afterwards. ``fp32`` leaves it as it is. ``unchanged``: its weights
    were rounded before, and to round them again must not change them.

    Raises:
        ModelError: it has no such layers, or they change.
    """
    if precision == "fp32":
        return model
    head, kind, count = model.get_output_embeddings(), _KINDS[precision], 0
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if type(layer) is nn.Linear and layer is not head:
                held = kind(layer)
                if unchanged and not torch.equal(held.weight, layer.weight):
                    raise ModelError(
                        f"model.base_precision: {precision} changes the weights of {name}, and the "
                        "model is known by their values as they are: load it in fp32"
                    )
                setattr(module, name, held)
                count += 1
    if not count:
        raise ModelError(
            f"model.base_precision: {type(model).__name__} has no linear layers of torch's own, "
            "and no others can be held in another precision: set model.base_precision: fp32"
        )
    return model.requires_grad_(False)


@torch.no_grad()
def let_go(model: nn.Module) -> None:
    """Turn held layers, also below adapters, into layers of fp32 weights with the same values."""
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, HeldLinear):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
                plain.weight = nn.Parameter(layer.weight, requires_grad=False)
                plain.bias = layer.bias
                setattr(module, name, plain)
