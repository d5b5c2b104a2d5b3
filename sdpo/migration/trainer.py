"""Carry over what TRL and LLaMA-Factory both have of transformers' TrainingArguments."""

import math
from collections.abc import Mapping
from typing import get_args

from sdpo.config.precision import torch_name
from sdpo.config.running import Tracker
from sdpo.errors import ConfigError
from sdpo.migration.reading import Reading
from sdpo.system.json_values import Json
from sdpo.system.words import counted

TRAINER_DEFAULTS: dict[str, Json] = {
    **{"learning_rate": 5e-5, "weight_decay": 0.0, "max_grad_norm": 1.0},
    **{"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "optim": "adamw_torch_fused"},
    **{"num_train_epochs": 3.0, "max_steps": -1, "seed": 42, "warmup_steps": 0},
    **{"warmup_ratio": 0.0, "lr_scheduler_type": "linear"},
    **{"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
    **{"bf16": False, "fp16": False, "gradient_checkpointing": False, "torch_compile": False},
    "eval_strategy": "no",
}
"""Defaults of transformers 5.23's TrainingArguments, of the settings that carry over."""

SAME = {
    "learning_rate": "training.learning_rate",
    "weight_decay": "training.weight_decay",
    "max_grad_norm": "training.max_grad_norm",
    "adam_beta1": "training.adam_beta1",
    "adam_beta2": "training.adam_beta2",
    "adam_epsilon": "training.adam_epsilon",
}
"""Numbers with the same meaning on both sides."""

_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine_with_min_lr",
}
_OPTIMIZERS = {
    "adamw": "adamw",
    "rmsprop": "rmsprop",
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
_TRACKERS = get_args(Tracker)


def carry_trainer(reading: Reading, *, devices: int) -> None:
    """Put what transformers' trainer is set to into the recipe; ``devices`` share a batch."""
    for name, path in SAME.items():
        reading.put(path, reading.number(name), name)
    carry_optimizer(reading, "optim")
    carry_schedule(reading, "lr_scheduler_type")
    carry_warmup(reading)
    _length(reading)
    carry_batch(reading, "per_device_train_batch_size", devices=devices)
    reading.put("training.seed", reading.whole("seed"), "seed")
    carry_precision(reading)
    for name, path in (
        ("gradient_checkpointing", "training.gradient_checkpointing"),
        ("torch_compile", "training.compile"),
    ):
        reading.put(path, reading.flag(name), name)
    _measuring(reading)
    if reading.flag("use_cpu"):
        reading.put("launch.device", "cpu", "use_cpu")
    if reading.said("save_total_limit"):
        kept = max(1, reading.whole("save_total_limit"))
        reading.put("training.checkpoints_kept", kept, "save_total_limit")
    reading.name_run("run_name", "output_dir")


def carry_optimizer(reading: Reading, name: str) -> None:
    """Put the optimizer into the recipe; one that is not here leaves AdamW, with a note."""
    optimizer = reading.text(name)
    plain = optimizer == "adamw_hf" or optimizer.startswith("adamw_torch")
    found = "adamw" if plain and not optimizer.endswith("bit") else _OPTIMIZERS.get(optimizer)
    reading.put("training.optimizer", found or "adamw", name)
    if found is None:
        known = ", ".join(dict.fromkeys(_OPTIMIZERS.values()))
        reading.lack(name, f"training.optimizer is one of {known}; here adamw")


def carry_schedule(reading: Reading, name: str) -> None:
    """Put the schedule of the learning rate into the recipe.

    Raises:
        ConfigError: there is no such schedule here, and the user gives none.
    """
    path = "training.lr_schedule"
    schedule = reading.text(name)
    extra = reading.get("lr_scheduler_kwargs")
    if schedule not in _SCHEDULES and not reading.gives(path):
        raise ConfigError(
            f"{name} {schedule} has no counterpart: schedules here are linear, cosine, "
            f"cosine_with_min_lr and constant. Choose one: --set {path}=cosine"
        )
    reading.put(path, _SCHEDULES.get(schedule, schedule), name)
    if not extra:
        return
    rest = dict(extra) if isinstance(extra, Mapping) else {"lr_scheduler_kwargs": extra}
    lowest = None
    if schedule == "cosine_with_min_lr":
        rate, absolute = rest.pop("min_lr_rate", None), rest.pop("min_lr", None)
        if isinstance(rate, int | float):
            lowest = float(rate)
        elif isinstance(absolute, int | float):
            lowest = float(absolute) / reading.number("learning_rate")
    if lowest is not None:
        reading.put("training.min_lr_rate", lowest, "lr_scheduler_kwargs")
    if rest:
        reading.lack("lr_scheduler_kwargs", f"{', '.join(map(str, rest))} has no counterpart")


def carry_warmup(reading: Reading, *, schedule: str = "lr_scheduler_type") -> None:
    """Put the warmup into the recipe: below 1 a share of the steps, from 1 on so many of them."""
    steps, ratio = reading.number("warmup_steps"), reading.number("warmup_ratio")
    if reading.get(schedule) == "constant":  # which has none, whatever is said
        reading.put("training.warmup_ratio", 0.0, schedule)
        return
    if steps >= 1:
        reading.put("training.warmup_steps", int(steps), "warmup_steps")
        return
    share, name = (steps, "warmup_steps") if steps else (ratio, "warmup_ratio")
    # What is spelled as a number of steps or as a share is computed, if one of the two is.
    reading.put("training.warmup_ratio", float(share), name, "warmup_ratio", "warmup_steps")


def _length(reading: Reading) -> None:
    steps = reading.whole("max_steps")
    carry_epochs(reading, "num_train_epochs")
    if steps > 0:
        reading.put("training.max_steps", steps, "max_steps")
        reading.differ(
            f"max_steps: {steps} repeats the data there until so many steps are done; here it is a "
            "bound, beside training.epochs: raise that where the data is short"
        )


def carry_epochs(reading: Reading, name: str) -> None:
    """Put the passes over the data into the recipe; part of one is rounded up, with a note."""
    epochs = reading.number(name)
    whole = max(1, math.ceil(epochs))
    reading.put("training.epochs", whole, name)
    if epochs != whole:
        reading.differ(
            f"{name}: {epochs}: passes are whole here, {whole} is written; training.max_steps ends "
            "within one"
        )


def carry_batch(reading: Reading, name: str, *, devices: int) -> None:
    """Put the batch into the recipe: what one device takes, times accumulation, times devices."""
    each, accumulated = reading.whole(name), reading.whole("gradient_accumulation_steps")
    path = "training.batch_size"
    reading.put(path, each * accumulated * devices, name, "gradient_accumulation_steps")
    if devices > 1:
        reading.put("launch.processes", devices)
    if not reading.gives(path):
        reading.differ(
            f"the batch is of all devices together: {counted(each, 'pair')} x {accumulated} "
            f"accumulated x {counted(devices, 'device')} = {each * accumulated * devices}; "
            "--devices says how many there are"
        )


def carry_precision(reading: Reading) -> None:
    """Put bf16 or fp32 into the recipe; fp16 becomes bf16, with a note."""
    half, brain = reading.flag("fp16"), reading.flag("bf16")
    precision = "bf16" if half or brain else "fp32"
    reading.put("training.precision", precision, "bf16", "fp16")
    if half and not reading.gives("training.precision"):
        reading.differ("fp16: true: this project refuses fp16, so bf16 is written")


def carry_weights(reading: Reading, *names: str) -> None:
    """Note where the tool would hold weights that train in half precision."""
    for name in names:
        value = reading.text(name)
        if torch_name(value) in ("bfloat16", "float16"):
            reading.differ(f"{name}: {value}: weights that train are fp32 here, bf16 is autocast")


def _measuring(reading: Reading) -> None:
    strategy = reading.text("eval_strategy")
    every = reading.number("eval_steps") if reading.said("eval_steps") else 0
    if strategy == "steps" and every >= 1:
        reading.put("evaluation.every", int(every), "eval_steps", "eval_strategy")
        reading.differ("eval_steps: what is measured on is the reserve, not eval_dataset")
    elif strategy not in ("", "no", "False"):
        reading.lack("eval_strategy", "every model is measured on the reserve, after each step")
    tools = [each for each in reading.texts("report_to") if each not in ("none", "all")]
    known = [each for each in tools if each in _TRACKERS]
    if known:
        reading.put("tracking.tools", known, "report_to")
    for other in set(tools) - set(known):
        reading.lack("report_to", f"{other} is none of {', '.join(_TRACKERS)} (tracking.tools)")
    if reading.said("project"):
        reading.put("tracking.project", reading.text("project"), "project")
