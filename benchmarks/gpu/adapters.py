"""Go on with part 5: train an 8B model on one card, which only adapters make possible."""

from collections.abc import Iterator

from benchmarks.gpu import models
from benchmarks.gpu.findings import Finding, Settings
from benchmarks.gpu.inmemory import prepare
from benchmarks.gpu.training import matmul_rate, told
from benchmarks.shapes import SHAPES


def run(settings: Settings) -> Iterator[Finding]:
    """Train LoRA of rank 16 on all linear modules, with base weights in fp32."""
    rate = matmul_rate(settings)
    models.reset_peak(settings.device)
    name, lengths = ("tiny", "short") if settings.tiny else ("8B", "ultrafeedback-long")
    training = prepare(
        settings,
        SHAPES[name],
        lengths=lengths,
        pairs=10 if settings.tiny else 40,
        batch_size=2 if settings.tiny else 8,
        lora_r=16,
        micro_batch_tokens=256 if settings.tiny else 4096,
        learning_rate=1e-5,
    )
    training.train()
    # Gradients flow through the base to the adapters, and none is made for its weights.
    yield told(training, f"training alone, {name}, LoRA r=16", rate, operations=2.0)
