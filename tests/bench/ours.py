"""This project's side: the real stage of a step, as the supervisor starts it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.config import (
    EvaluationConfig,
    LaunchConfig,
    ModelConfig,
    ProbeConfig,
    TrackingConfig,
    TrainingConfig,
)
from sdpo.spec import StepSpec
from sdpo.store import RunFolder
from sdpo.supervisor import run_stage
from tests.bench.measured import Usage, measured_stages
from tests.bench.workload import Workload

ASIDE = {"load", "publish", "measure"}
"""Phases that are neither scoring nor training. Whatever else a stage times counts as training:
checks of the layout, the gate, searches for a budget."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of a trainer over step 1: seconds by phase, the loss of every optimizer step."""

    name: str
    seconds: dict[str, float]
    losses: list[float]
    usage: Usage

    @property
    def score_s(self) -> float:
        """Reference log-probs."""
        return self.seconds.get("score", 0.0)

    @property
    def train_s(self) -> float:
        """Training with all that comes before its first step."""
        others = {k: v for k, v in self.seconds.items() if k not in ASIDE | {"score", "prepare"}}
        return sum(others.values())

    @property
    def total_s(self) -> float:
        """Scoring and training."""
        return self.score_s + self.train_s


def launch_config(*, device: str, threads: int) -> LaunchConfig:
    """One process."""
    return LaunchConfig(
        processes=1,
        strategy="single",
        device=device,
        threads=threads,  # type: ignore[arg-type]
    )


def training_config(workload: Workload, /, **changes: Any) -> TrainingConfig:
    """The settings that both sides train with."""
    settings = {
        "learning_rate": 1e-4,
        "lr_schedule": "constant",
        "warmup_ratio": 0.0,
        "batch_size": workload.settings.batch_size,
        "seed": workload.settings.seed,
        "precision": "fp32" if workload.settings.device == "cpu" else "bf16",
    }
    return TrainingConfig.model_validate(settings | changes)


def run_step(
    workload: Workload,
    folder: Path,
    training: TrainingConfig,
    launch: LaunchConfig,
    *,
    cache: Path | None = None,
) -> Measurement:
    """Score and train D_1 in the stage of a fresh run in ``folder``; ``cache`` else a fresh one."""
    run = RunFolder(folder / "run")
    shutil.copytree(workload.run, run.path)
    (run.path / "logs").mkdir()
    digest = workload.facts["digest"]
    spec = StepSpec(
        name="step-1",
        run=run.path,
        model=ModelConfig(name_or_path=str(workload.model)),
        launch=launch,
        step=1,
        task="preference",
        input_model=workload.model,
        input_digest=digest,
        input_name="M_0",
        base=workload.model,
        tokens=workload.tokens,
        pairs=run.pairs,
        usable=run.usable,
        plan=run.plan,
        cache=cache or folder / "cache",
        training=training,
        evaluation=EvaluationConfig(),
        probe=ProbeConfig(completions=0),
        tracking=TrackingConfig(),
        inputs={"reference": digest, "target": digest, "partition": "0" * 64},
    )
    with measured_stages(folder / "usage") as stages:
        result = run_stage(spec, listen=_ignore)
    lines = (run.step(1) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    shutil.rmtree(run.model(1))  # large, and nobody asks for it
    return Measurement("sdpo", result["timings_s"], losses, stages.usage["step-1"])


def _ignore(event: object) -> None:
    """Nobody watches a measurement."""
