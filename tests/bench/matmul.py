"""The machine's rate of matrix products: ``python -m tests.bench.matmul DEVICE DTYPE THREADS``."""

import sys
import time

import torch


def rate(*, device: str, dtype: torch.dtype) -> float:
    """Best FLOP/s of square products of a few sizes."""
    sizes = (1024, 2048, 3072) if device == "cpu" else (4096, 8192, 16384)
    return max(_rate(size, device=device, dtype=dtype) for size in sizes)


def _rate(size: int, *, device: str, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = left @ right
    best, until = 0.0, time.perf_counter() + 1.0
    while time.perf_counter() < until:
        _wait(device)
        start = time.perf_counter()
        for _ in range(1 if device == "cpu" else 10):
            torch.mm(left, right, out=out)
        _wait(device)
        repeats = 1 if device == "cpu" else 10
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - start))
    return best


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(rate(device=sys.argv[1], dtype=getattr(torch, sys.argv[2])))
