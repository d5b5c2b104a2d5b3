"""Run this project's side: the real stage of a step, as the supervisor starts it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.measured import Usage, measured_stages
from benchmarks.workload import CLOCK, Workload
from sdpo.config import (
    EvaluationConfig,
    LaunchConfig,
    ModelConfig,
    ProbeConfig,
    TrackingConfig,
    TrainingConfig,
)
from sdpo.processes.stage_results import StepResult
from sdpo.processes.stage_specs import StepSpec, TokeniseSpec
from sdpo.processes.supervisor import run_stage
from sdpo.store.run_folder import RunFolder

ASIDE = {"load", "publish", "measure"}
"""These phases are neither scoring nor training. Whatever else a stage times counts as training:
checks of the layout, the gate, searches for a budget."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement is one run over step 1: seconds by phase, the loss of every optimizer step."""

    name: str
    seconds: dict[str, float]
    losses: list[float]
    usage: Usage

    @property
    def prepare_s(self) -> float:
        """Return the seconds from text to token ids."""
        return self.seconds.get("prepare", 0.0)

    @property
    def score_s(self) -> float:
        """Return the seconds of scoring under the reference."""
        return self.seconds.get("score", 0.0)

    @property
    def train_s(self) -> float:
        """Return the seconds of training, with all that comes before its first step."""
        others = {k: v for k, v in self.seconds.items() if k not in ASIDE | {"score", "prepare"}}
        return sum(others.values())

    @property
    def alone_s(self) -> float:
        """Return the seconds of scoring and of optimizer steps, without what a step pays once."""
        return self.score_s + self.seconds.get("train", 0.0)

    @property
    def total_s(self) -> float:
        """Return the seconds of scoring and training."""
        return self.score_s + self.train_s


def launch_config(*, device: Literal["cpu", "cuda"], threads: int) -> LaunchConfig:
    """Return settings that launch one process."""
    return LaunchConfig(
        processes=1,
        strategy="single",
        device=device,
        threads=threads,
    )


def training_config(workload: Workload, /, **changes: Any) -> TrainingConfig:
    """Return the settings that both sides train with; ``changes`` are some in place of these."""
    settings = {
        "learning_rate": 1e-4,
        "lr_schedule": "constant",
        "warmup_ratio": 0.0,
        "batch_size": workload.settings.batch_size,
        "seed": workload.settings.seed,
        "precision": "fp32" if workload.settings.device == "cpu" else "bf16",
    }
    return TrainingConfig.model_validate(settings | changes)


def run_tokenise(workload: Workload, folder: Path, *, threads: int) -> Measurement:
    """Tokenise the workload's pairs in the real stage; its seconds are all but its imports."""
    run = RunFolder(folder / "run")
    (run.path / "logs").mkdir(parents=True)
    spec = TokeniseSpec(
        name="tokenise",
        run=run.path,
        model=ModelConfig(name_or_path=str(workload.model)),
        launch=launch_config(device="cpu", threads=threads),
        tokenizer=workload.model,
        pairs=RunFolder(workload.run).pairs,
        out=folder / "tokens.arrow",
        max_length=workload.settings.max_length,
        clock=CLOCK.isoformat(),
        end_token_ids=[workload.facts["end_token"]],
    )
    with measured_stages(folder / "usage") as stages:
        run_stage(spec, listen=_ignore)
    usage = stages.usage["tokenise"]
    return Measurement("sdpo", {"prepare": usage.work_s}, [], usage)


def run_step(
    workload: Workload,
    folder: Path,
    training: TrainingConfig,
    launch: LaunchConfig,
    *,
    cache: Path | None = None,
) -> Measurement:
    """Score and train D_1 in the stage of a fresh run in ``folder``.

    ``cache``: the cache of log-probs; without it a fresh one.
    """
    spec = step_spec(
        workload,
        folder,
        training,
        launch,
        cache=cache or folder / "cache",
        phases=("reference", "preference"),
        inputs=dict.fromkeys(("reference", "target"), workload.facts["digest"]),
    )
    with measured_stages(folder / "usage") as stages:
        result = run_stage(spec, listen=_ignore)
    run = RunFolder(spec.run)
    losses = read_losses(run.step(1) / "metrics.jsonl")
    shutil.rmtree(run.model(1))  # large, and nobody asks for it
    return Measurement("sdpo", result.read(StepResult).timings_s, losses, stages.usage["step-1"])


def step_spec(
    workload: Workload, folder: Path, training: TrainingConfig, launch: LaunchConfig, **fields: Any
) -> StepSpec:
    """Make a fresh run in ``folder``, and return the spec of its stage that starts from M_0."""
    run = RunFolder(folder / "run")
    shutil.copytree(workload.run, run.path)
    (run.path / "logs").mkdir()
    return StepSpec(
        name="step-1",
        run=run.path,
        model=ModelConfig(name_or_path=str(workload.model)),
        launch=launch,
        step=1,
        input_model=workload.model,
        input_digest=workload.facts["digest"],
        input_name="M_0",
        base=workload.model,
        tokens=workload.tokens,
        pairs=run.pairs,
        usable=run.usable,
        plan=run.plan,
        training=training,
        evaluation=EvaluationConfig(),
        probe=ProbeConfig(completions=0),
        tracking=TrackingConfig(),
        **fields,
    )


def read_losses(path: Path) -> list[float]:
    """Return the loss of every optimizer step in a ``metrics.jsonl``."""
    entries = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def _ignore(event: object) -> None:
    """Ignore an event: nobody watches a measurement."""
