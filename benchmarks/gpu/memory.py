"""Run part 4: let a real stage run out of memory, and see how it goes on.

Micro-batches are asked for that the device cannot hold. The stage has to halve them, say so, keep
the lowered budget beside the model, and publish. On a CPU the kernel's limit on a process's data
stands for the device's size.
"""

import json
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from benchmarks.gpu import workloads
from benchmarks.gpu.findings import Finding, Settings
from benchmarks.measured import status_bytes
from benchmarks.ours import launch_config, read_losses, step_spec, training_config
from benchmarks.workload import Workload
from sdpo.config import TrainingConfig
from sdpo.errors import SdpoError
from sdpo.events import Event
from sdpo.processes.supervisor import run_stage

_SPARE_BYTES = 256e6
"""A stage on a CPU may take so much more than the most that small micro-batches took."""


def run(settings: Settings) -> Iterator[Finding]:
    """Ask for too much; see the module."""
    workload = workloads.ready(settings, "scarce")
    too_many = 10 * int(sum(map(sum, workload.facts["lengths"])))
    training = training_config(
        workload, precision="bf16", layout="padded", micro_batch_tokens=too_many
    )
    if settings.device == "cpu":
        enough = training.model_copy(update={"micro_batch_tokens": 2048})
        with _watched() as most:
            _stage(settings, workload, enough, name="enough")
        with _limited(int(most.data_bytes + _SPARE_BYTES)):
            found = _stage(settings, workload, training, name="too-much")
    else:
        found = _stage(settings, workload, training, name="too-much")
    yield found


def _stage(
    settings: Settings, workload: Workload, training: TrainingConfig, *, name: str
) -> Finding:
    spec = step_spec(
        workload,
        settings.path / "memory" / name,
        training,
        launch_config(device=settings.device, threads=settings.threads),
        cache=settings.path / "memory" / name / "cache",
        phases=("reference", "preference"),
        inputs=dict.fromkeys(("reference", "target"), workload.facts["digest"]),
    )
    events: list[Event] = []
    what = f"micro-batches of {training.micro_batch_tokens:,} tokens"
    try:
        run_stage(spec, listen=events.append)
    except SdpoError as error:
        return Finding(what=what, seen=f"the stage ended: {error}", ok=False)
    kept = spec.folder / "budget.json"
    budget = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    reductions = [entry["micro_batch_tokens"] for entry in budget.get("reductions", [])]
    warnings = [e["message"] for e in events if e["event"] == "warning"]
    losses = read_losses(spec.folder / "metrics.jsonl")
    lowered = ", ".join(f"{tokens:,}" for tokens in reductions) or "no fewer"
    return Finding(
        what=what,
        seen=f"went on with {lowered}; loss {losses[0]:.4f}; said: "
        f"{' '.join(warnings) or 'nothing'}",
        ok=bool(reductions and warnings and losses),
        numbers={"reductions": [float(tokens) for tokens in reductions], "losses": losses},
    )


@dataclass
class _Most:
    data_bytes: int = 0


@contextmanager
def _watched() -> Iterator[_Most]:
    """Note the most private memory (VmData) of any child while this lasts."""
    most, ended = _Most(), threading.Event()

    def look() -> None:
        while not ended.is_set():
            for child in psutil.Process().children(recursive=True):
                most.data_bytes = max(most.data_bytes, status_bytes("VmData", child.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()


@contextmanager
def _limited(data_bytes: int) -> Iterator[None]:
    """Let children that start meanwhile have so much private memory (RLIMIT_DATA) and no more."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
