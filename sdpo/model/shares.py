"""Let weights that ranks share be whole for a time, whatever the strategy; others are so anyway."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def is_divided(module: nn.Module) -> bool:
    """Return whether FSDP2 holds the weights of ``module``'s own group in shares."""
    return hasattr(module, "unshard")


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Let the weights of ``module``'s own group be whole on this rank while within.

    Groups within it gather theirs when they compute. Every rank has to enter it.
    """
    if not is_divided(module):
        yield
        return
    module.unshard()  # type: ignore[operator]
    try:
        yield
    finally:
        module.reshard()  # type: ignore[operator]
