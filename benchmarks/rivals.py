"""Run TRL's side from the process that starts it: say what to do, and read what came of it."""

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measured import TRL_IMPORTS, run_measured
from benchmarks.ours import Measurement
from benchmarks.workload import Workload
from sdpo.config import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to run TRL: it takes time and memory, and changes nothing of what is learnt.

    ``checkpointing``: its own ``gradient_checkpointing``. ``precompute``: the reference scores all
    pairs first; else it stays beside the policy.
    """

    per_device: int
    checkpointing: bool = False
    precompute: bool = True

    @property
    def name(self) -> str:
        """Return what a table calls it."""
        parts = [f"TRL {self.per_device}/device"]
        parts += ["checkpointing"] * self.checkpointing + ["ref model"] * (not self.precompute)
        return ", ".join(parts)

    @property
    def folder(self) -> str:
        """Return the name without what a path would not take."""
        return re.sub(r"[^\w]+", "-", self.name)


AS_CONFIGURED = Way(per_device=8, checkpointing=True, precompute=False)
"""TRL 1.16 trains so where nobody says otherwise."""


def has_trl() -> bool:
    """Return whether TRL and the library datasets are installed here."""
    return all(importlib.util.find_spec(name) for name in ("trl", "datasets"))


def environment(*, threads: int, cache: Path) -> dict[str, str]:
    """Return variables that give TRL's process the threads of our stages, and a cache of its own.

    How its threads wait for each other is as OpenMP has it by default, where nobody set it: a user
    of TRL has that too.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_DATASETS_CACHE": str(cache),
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }


def run_trl(
    workload: Workload, folder: Path, training: TrainingConfig, *, way: Way, threads: int
) -> Measurement:
    """Prepare, score and train D_1 with TRL in ``folder``.

    Raises:
        OutOfMemoryKill: the machine has too little memory for it.
        RuntimeError: TRL failed, or trained on other tokens.
    """
    spec = trl_spec(workload, folder, training, rows=[workload.ordered(1)], way=way)
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    usage = run_measured(
        folder / "usage.json",
        TRL_IMPORTS,
        "benchmarks.theirs",
        str(path),
        environment=environment(threads=threads, cache=folder / "datasets"),
    )
    [result] = json.loads(Path(spec["results"]).read_text(encoding="utf-8"))
    if result["tokens"] != workload.facts["tokens"]:
        raise RuntimeError("TRL trained on other tokens: the comparison would mean nothing")
    return Measurement(way.name, result["seconds"], result["losses"], usage)


def _lora(training: TrainingConfig) -> dict[str, Any] | None:
    """Return what peft's ``LoraConfig`` is given for the same adapters; None without them."""
    if not training.lora_r:
        return None
    targets = training.lora_target_modules
    return {
        "r": training.lora_r,
        "lora_alpha": training.lora_alpha,
        "lora_dropout": training.lora_dropout,
        "target_modules": "all-linear" if targets == ["all-linear"] else targets,
        "task_type": "CAUSAL_LM",
    }


def trl_spec(
    workload: Workload,
    folder: Path,
    training: TrainingConfig,
    *,
    rows: Sequence[Path],
    way: Way,
) -> dict[str, Any]:
    """Make ``folder``, and return what :mod:`benchmarks.theirs` reads."""
    folder.mkdir(parents=True)
    settings = workload.settings
    return {
        "model": str(workload.model),
        "tokenizer": str(workload.model),
        "rows": [str(path) for path in rows],
        "out": str(folder / "out"),
        "results": str(folder / "results.json"),
        "per_device": way.per_device,
        "batch_size": training.batch_size,
        "precompute": way.precompute,
        "beta": training.beta,
        "learning_rate": training.learning_rate,
        "max_grad_norm": training.max_grad_norm,
        "gradient_checkpointing": way.checkpointing or training.gradient_checkpointing,
        "max_length": settings.max_length,
        "seed": training.seed,
        "device": settings.device,
        "bf16": training.precision == "bf16",
        "lora": _lora(training),
        "end_token": workload.facts["end_token"],
        "save": False,
    }
