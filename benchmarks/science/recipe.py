"""Make the recipe of a campaign and its trials: arms by seeds, those that say most first."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.science.design import SOURCES, Design
from benchmarks.science.sources import Source
from sdpo.config import RunConfig
from sdpo.config.load import make_config
from sdpo.study.arms import ARMS, Arm, Trial, trials_of
from sdpo.study.folder import StudyFolder

STUDY = "campaign"


def campaign_config(
    design: Design,
    *,
    model: Path,
    sources: Sequence[Source],
    work: Path,
    task_files: Path | None = None,
) -> RunConfig:
    """Return the recipe that all arms change: a natural chain over the three sources.

    Raises:
        ConfigError: a setting of the design cannot be.
    """
    win_rate = {"judge": {"rule": design.rule}, "prompts": design.win_prompts}
    evaluation = {
        **({"task_files": str(task_files)} if task_files else {}),
        **({"suites": list(design.suites), "limit": design.limit} if design.suites else {}),
        **({"win_rate": {**win_rate, "max_new_tokens": 64}} if design.win_prompts else {}),
    }
    return make_config(
        {
            "name": "sdpo",
            "model": {"name_or_path": str(model)},
            "data": {
                "sources": [{"name": s.name, "path": str(s.path)} for s in sources],
                "max_length": design.max_length,
                "limit": design.pairs + design.reserve,
                "reserve": {"pairs": design.reserve},
            },
            "partition": {"strategy": "natural"},
            "training": {
                "beta": design.beta,
                "learning_rate": design.learning_rate,
                "batch_size": design.batch_size,
                "lora_r": design.lora_r,
                # Of so few updates none is spent at rate 0.
                "warmup_ratio": 0.0,
                "seed": design.first_seed,
            },
            "probe": {"max_pairs": design.pairs * len(SOURCES), "completions": 0},
            "evaluation": evaluation,
            # A part takes as many cores as the design says: others may run beside it (--only).
            "launch": {"device": "cpu", "threads": design.threads, "share_device": True},
            "store": {"runs_dir": str(work / "runs"), "cache_dir": str(work / "cache")},
        }
    )


def campaign_arms(design: Design) -> list[Arm]:
    """Return the arms: those of several seeds, then the others; fractions are thirds."""
    thirds = f"partition.fractions={[0.3333, 0.3333, 0.3334]}"
    arms = []
    for name in (*design.several, *design.single):
        arm = ARMS[name]
        if name in ("stratified", "random"):
            arm = replace(arm, overrides=(*arm.overrides, thirds))
        arms.append(arm)
    return arms


def campaign_trials(design: Design, config: RunConfig, study: StudyFolder) -> list[Trial]:
    """Return all trials in order: every arm with the first seed, then the others of several."""
    arms = campaign_arms(design)
    first = trials_of(config, arms, seeds=1, partition_seeds=False, folder=study.path)
    several = arms[: len(design.several)]
    more = trials_of(config, several, seeds=design.seeds, partition_seeds=False, folder=study.path)
    return [*first, *more[len(several) :]]
