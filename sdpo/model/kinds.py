"""Name the types of what other libraries pass without one."""

from typing import Protocol, TypeAlias

import torch

Option: TypeAlias = torch.Tensor | float | str | bool | None
"""An architecture's own code passes such values beside the tensors that are known here."""


class Context(Protocol):
    """A context is what autograd gives the forward and the backward pass of a function."""

    saved_tensors: tuple[torch.Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
        """Keep tensors for the backward pass."""


Gradients: TypeAlias = tuple[torch.Tensor | None, ...]
"""A backward pass returns the gradients of a function's inputs; None for one that has none."""
