"""Compute micro-batches in several threads of one process, on a CPU.

Threads that share a matrix product of a small model wait for each other at the end of every
operation; threads that each have other pairs do not. They share the weights. Gradients they do not
share: each sums its own, and the sums are added in the lanes' order, so that the result does not
depend on which was done first.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_lanes(
    function: Callable[[_T], _R],
    items: Iterable[_T],
    *,
    lanes: int,
    ended: threading.Event | None = None,
) -> Generator[_R]:
    """Yield ``function`` of each item, in the items' order, computing ``lanes`` at a time.

    Lanes compute with the caller's gradient mode and autocast. What a lane raises is raised here,
    when the others that had begun are done. ``ended`` is set on every way out: a function that
    takes long looks at it, so that the process can end without delay.
    """
    if lanes == 1:
        yield from map(function, items)
        return
    # torch keeps these for each thread.
    gradients, low = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def run(item: _T) -> _R:
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=dtype, enabled=low):
            return function(item)

    waiting: deque[Future[_R]] = deque()
    with _threads_of_each(lanes), ThreadPoolExecutor(lanes, "lane") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(run, item))
                if len(waiting) > 2 * lanes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            if ended:
                ended.set()
            for future in waiting:
                future.cancel()


@contextmanager
def _threads_of_each(lanes: int) -> Iterator[None]:
    """Give each lane its share of torch's threads: new threads inherit it from this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // lanes))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class GradientSum:
    """A lane sums its gradients of ``parameters`` here; None where no loss depends on one."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self._sums: list[torch.Tensor | None] = [None] * len(parameters)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of ``loss``."""
        found: Sequence[torch.Tensor | None] = torch.autograd.grad(
            loss, self.parameters, allow_unused=True
        )
        for index, gradient in enumerate(found):
            if gradient is None:
                continue
            total = self._sums[index]
            if total is None:  # what autograd returns may be another parameter's gradient as well
                self._sums[index] = gradient.clone()
            else:
                total.add_(gradient)

    def hand_over(self) -> None:
        """Add the sums to the parameters' ``grad``."""
        for parameter, total in zip(self.parameters, self._sums, strict=True):
            if total is None:
                continue
            if parameter.grad is None:
                parameter.grad = total
            else:
                parameter.grad.add_(total)
        self._sums = []
