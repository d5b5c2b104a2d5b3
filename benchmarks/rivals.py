"""Run TRL's side from the process that starts it: say what to do, and read what came of it."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measured import TRL_IMPORTS, run_measured
from benchmarks.ours import Measurement
from benchmarks.workload import Workload
from sdpo.config import TrainingConfig

NOT_PRECOMPUTED = "ref model"
CHECKPOINTING = "checkpointing"
"""TRL trains so, by its own ``gradient_checkpointing``, where the machine's memory asks for it."""


def trl_name(per_device: int) -> str:
    """Return what a table calls TRL with so many pairs per device."""
    return f"TRL {per_device}/device"


def trl_size(name: str) -> int:
    """Return the pairs per device of the TRL that is called ``name``, whatever follows them."""
    return int(name.removeprefix("TRL ").partition("/")[0])


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
    workload: Workload,
    folder: Path,
    training: TrainingConfig,
    *,
    per_device: int,
    threads: int,
    precompute: bool = True,
    checkpointing: bool = False,
) -> Measurement:
    """Prepare, score and train D_1 with TRL in ``folder``; ``checkpointing``: by its own setting.

    Raises:
        OutOfMemoryKill: the machine has too little memory for it.
        RuntimeError: TRL failed, or trained on other tokens.
    """
    spec = trl_spec(
        workload, folder, training, rows=[workload.ordered(1)], per_device=per_device
    ) | {"precompute": precompute}
    if checkpointing:
        spec["gradient_checkpointing"] = True
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
    name = trl_name(per_device) + (f", {CHECKPOINTING}" if checkpointing else "")
    name += "" if precompute else f", {NOT_PRECOMPUTED}"
    return Measurement(name, result["seconds"], result["losses"], usage)


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
    per_device: int,
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
        "per_device": per_device,
        "batch_size": training.batch_size,
        "precompute": True,
        "beta": training.beta,
        "learning_rate": training.learning_rate,
        "max_grad_norm": training.max_grad_norm,
        "gradient_checkpointing": training.gradient_checkpointing,
        "max_length": settings.max_length,
        "seed": training.seed,
        "device": settings.device,
        "bf16": training.precision == "bf16",
        "lora": _lora(training),
        "end_token": workload.facts["end_token"],
        "save": False,
    }
