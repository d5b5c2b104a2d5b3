"""Measure the rate of matrix products: ``python -m benchmarks.matmul DEVICE DTYPE THREADS``.

It prints two rates as JSON: FLOP per second, and FLOP per second of CPU time, which other programs
on the same cores do not change.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """A rate is in FLOP per second of wall time and of CPU time."""

    wall: float
    cpu: float


def measure_rate(*, device: str, threads: int) -> Rate:
    """Return the rates on this device now, measured in a process of its own."""
    dtype = "float32" if device == "cpu" else "bfloat16"
    command = [sys.executable, "-m", "benchmarks.matmul", device, dtype, str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return Rate(**json.loads(done.stdout))


def main() -> None:
    """Measure the rates that the command line asks for, and print them."""
    import torch  # the process that starts this one needs none

    device, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    print(json.dumps(asdict(rates(device, dtype, seconds=1.0))))


def rates(device: str, dtype: str, *, seconds: float) -> Rate:
    """Return the best rates over products of several sizes, measured for ``seconds`` each."""
    import torch

    sizes = (1024, 2048, 3072) if device == "cpu" else (4096, 8192, 16384)
    wall = cpu = 0.0
    for size in sizes:
        left, right = (
            torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2)
        )
        out = left @ right
        repeats = 1 if device == "cpu" else 10
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            _wait(torch, device)
            start, start_cpu = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                torch.mm(left, right, out=out)
            _wait(torch, device)
            flops = repeats * 2 * size**3
            wall = max(wall, flops / (time.perf_counter() - start))
            cpu = max(cpu, flops / (time.process_time() - start_cpu))
    return Rate(wall, cpu)


def _wait(torch: object, device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
