"""Train in this process: model on the device, synthetic pairs, the trainer as stages have it.

So an optimizer step can be timed and profiled without loading and publishing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import models
from benchmarks.gpu.findings import Settings
from benchmarks.shapes import LENGTHS, Shape
from sdpo.config import TrainingConfig
from sdpo.events import EventWriter
from sdpo.model.policy import add_adapters
from sdpo.model.sequence_scorer import SequenceScorer
from sdpo.objectives import settings_of
from sdpo.stages.settle_budget import settle_budget
from sdpo.training.optimizer import make_optimizer
from sdpo.training.tasks import PreferenceTask
from sdpo.training.trainer import Trainer


@dataclass(slots=True, kw_only=True)
class Training:
    """A training is a trainer with its task.

    ``flops[i]``: useful operations of a forward of pair i; ``events``: the file of its events.
    """

    settings: Settings
    trainer: Trainer
    task: PreferenceTask
    flops: np.ndarray
    events: Path
    step_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def train(self) -> None:
        """Run the optimizer steps of the settings, and note the seconds and the loss of each."""
        device, before = self.settings.device, models.clock(self.settings.device)

        def on_step(_number: int, _total: int, metrics: dict[str, float]) -> None:
            nonlocal before
            now = models.clock(device)
            self.step_s.append(now - before)
            self.losses.append(metrics["loss"])
            before = now

        self.trainer.train(self.task, on_step=on_step)

    @property
    def steady_s(self) -> float:
        """Return the median seconds of an optimizer step, without the first two, which compile."""
        return median(self.step_s[2:] or self.step_s)

    def per_step(self, values: Sequence[float] | np.ndarray) -> float:
        """Return the mean sum of ``values`` (one a pair) over a global batch."""
        return float(np.mean(values)) * self.trainer.training.batch_size

    @property
    def tokens(self) -> np.ndarray:
        """Return the tokens of every pair, its prompt once: int ``[pairs]``."""
        total: np.ndarray = self.task.prompt_tokens + self.task.completion_tokens.sum(axis=1)
        return total


def prepare(
    settings: Settings, shape: Shape, *, lengths: str, pairs: int, **changes: Any
) -> Training:
    """Return a model of ``shape`` with a trainer over synthetic ``pairs``, its budget settled.

    ``changes``: training settings in place of these.
    """
    from accelerate import Accelerator

    training = TrainingConfig.model_validate(
        {
            "learning_rate": 1e-6,
            "lr_schedule": "constant",
            "warmup_ratio": 0.0,
            "batch_size": 32,
            "seed": settings.seed,
            "precision": "bf16",
            **changes,
        }
    )
    torch.set_num_threads(settings.threads)
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision="bf16")
    policy = models.llama(shape, device=settings.device, seed=settings.seed, sharp=False)
    if training.gradient_checkpointing:
        renamed = getattr(policy, "activation_checkpointing_enable", None)
        (renamed or policy.gradient_checkpointing_enable)({"use_reentrant": False})
    if training.lora_r:
        policy.requires_grad_(False)
        policy = add_adapters(policy, training)
    scorer = SequenceScorer(policy)
    scorer, optimizer = accelerator.prepare(scorer, make_optimizer(scorer, training))
    sizes = LENGTHS[lengths].sample(pairs, seed=settings.seed, max_length=1024)
    task = _task(sizes, shape, training)
    trainer = Trainer(
        accelerator=accelerator,
        scorer=scorer,
        optimizer=optimizer,
        training=training,
        pad_token_id=0,
        layout="shared",
    )
    folder = settings.path / f"inmemory-{shape.parameters}-{training.lora_r}-{training.compile}"
    folder.mkdir(parents=True)
    events = folder / "events.jsonl"
    task.reference[:] = reference_logps(trainer, task)
    settle_budget(
        trainer, task, folder=folder, key="benchmark", given=None, events=EventWriter(events)
    )
    flops = np.array([shape.forward_flops(*map(int, row)) for row in sizes], dtype=np.float64)
    return Training(settings=settings, trainer=trainer, task=task, flops=flops, events=events)


def _task(sizes: np.ndarray, shape: Shape, training: TrainingConfig) -> PreferenceTask:
    rng = np.random.default_rng(training.seed)
    prompts, chosen, rejected = (
        [rng.integers(5, shape.vocabulary, int(count)).astype(np.int32) for count in column]
        for column in sizes.T
    )
    return PreferenceTask(
        ids=[f"pair {number}" for number in range(len(sizes))],
        prompts=prompts,
        chosen=chosen,
        rejected=rejected,
        reference=np.zeros((len(sizes), 2), dtype=np.float32),
        objective=training.objective,
        settings=settings_of(training.model_dump()),
    )


@torch.no_grad()
def reference_logps(trainer: Trainer, task: PreferenceTask) -> np.ndarray:
    """Return the log-probs under the model as it is, fp32 ``[items, 2]``, in nats."""
    found = np.empty((len(task.ids), 2), dtype=np.float32)
    trainer.scorer.eval()
    for items in trainer.cut(np.arange(len(task.ids)), trainer.costs(task), step=0):
        found[items] = trainer.logps(task, items).view(2, -1).T.cpu().numpy()
    return found
