"""Recognise that memory was short, and compute in smaller parts where it was.

It imports no torch: the process that only reports an error needs it too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from sdpo.errors import Fault

_Result = TypeVar("_Result")

_SAYINGS = (
    "out of memory",  # torch's allocators, the driver ("CUDA error: out of memory"), NCCL
    "can't allocate memory",  # torch on a CPU
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error``, or what it was raised from, says that memory was short."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError":
            return True
        if isinstance(seen, RuntimeError) and any(said in str(seen) for said in _SAYINGS):
            return True
        seen = seen.__cause__
    return False


def remedies(*, fewer: str = "") -> str:
    """Return what helps where a single pair does not fit; ``fewer`` comes first."""
    return (
        f"set {fewer}training.gradient_checkpointing, train adapters (training.lora_r), shard the "
        "model (launch.strategy: deepspeed_zero3) or shorten data.max_length"
    )


@contextmanager
def short_memory_named(what: str, *, remedy: str) -> Iterator[None]:
    """Name, where memory is short within, what it was short for, and what helps there.

    Raises:
        Fault: memory was short.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise Fault(f"out of memory in {what}: {remedy} ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """Return what the error says, without the pages that torch adds.

    The next line is added where a colon ends the first.
    """
    first, _, rest = str(error).strip().partition("\n")
    return f"{first} {rest.strip().partition(chr(10))[0]}" if first.endswith(":") else first


@dataclass(slots=True, kw_only=True)
class Parts:
    """Parts compute batches of items; what memory does not hold is halved, and halved again.

    ``cost`` is what a forward of items takes, in tokens. What was too much once is divided
    at once the next time. Where processes wait for each other in every forward
    (``in_step``), none may do more of them than the others: there short memory is a fault.
    """

    what: str
    cost: Callable[[np.ndarray], float]
    in_step: bool = False
    too_much: float = field(default=float("inf"), init=False)

    def of(
        self, items: np.ndarray, compute: Callable[[np.ndarray], _Result]
    ) -> Iterator[tuple[np.ndarray, _Result]]:
        """Yield ``compute`` of ``items``, in order, in as few parts as fit.

        Raises:
            Fault: one item alone does not fit, or, ``in_step``, not all.
        """
        if len(items) > 1 and not self.in_step and self.cost(items) >= self.too_much:
            yield from self._halves(items, compute)
            return
        try:
            result = compute(items)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said = first_line(error)
        else:
            yield items, result
            return
        # Here the error is gone, and the tensors that its frames held with it.
        if self.in_step:
            raise Fault(f"out of memory in {self.what}: lower training.micro_batch_tokens ({said})")
        if len(items) <= 1:
            raise Fault(f"out of memory in {self.what} of one alone: {remedies()} ({said})")
        self.too_much = min(self.too_much, self.cost(items))
        _clear()
        yield from self._halves(items, compute)

    def _halves(
        self, items: np.ndarray, compute: Callable[[np.ndarray], _Result]
    ) -> Iterator[tuple[np.ndarray, _Result]]:
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            yield from self.of(half, compute)


def _clear() -> None:
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
