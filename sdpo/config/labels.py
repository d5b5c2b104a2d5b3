"""What a person reads beside a setting in a form: its label with the unit, and its place.

A setting's label comes from its name; here stands what the name does not say. Every number has a
unit, if only to say that it has none.
"""

from typing import Any

from pydantic import BaseModel

NONE = "no unit"
SHARE = "0 to 1"

UNITS = {
    **dict.fromkeys(("seed", "step"), NONE),
    **dict.fromkeys(("beta", "cal_dpo_c", "simpo_gamma_beta_ratio", "preference_weight"), NONE),
    **dict.fromkeys(("exo_epsilon", "label_smoothing", "adam_beta1", "adam_beta2"), SHARE),
    **dict.fromkeys(("fraction", "max_fraction", "fractions", "warmup_ratio"), SHARE),
    **dict.fromkeys(("learning_rate", "adam_epsilon", "weight_decay", "max_grad_norm"), NONE),
    **dict.fromkeys(("lora_r", "lora_alpha"), NONE),
    "lora_dropout": SHARE,
    **dict.fromkeys(("max_length", "micro_batch_tokens"), "tokens"),
    **dict.fromkeys(("completion_tokens", "kl_tokens"), "tokens"),
    **dict.fromkeys(("max_pairs", "min_pairs", "min_new_pairs", "limit", "batch_size"), "pairs"),
    **dict.fromkeys(("accuracy_tolerance", "prompt_overlap_max"), SHARE),
    **dict.fromkeys(("margin_tolerance_nats", "contamination_gap_max_nats"), "nats"),
    **dict.fromkeys(("gamma_change_min_nats", "gamma_change_max_nats"), "nats"),
    **dict.fromkeys(("every", "max_steps", "checkpoint_every"), "optimizer steps"),
    "epochs": "passes",
    **dict.fromkeys(("checkpoint_minutes", "timeout_minutes"), "minutes"),
    "checkpoints_kept": "states",
    "bootstrap_resamples": "resamples",
    **dict.fromkeys(("completions", "kl_prompts"), "prompts"),
    "kl_samples": "completions",
    "processes": "processes",
    "threads": "threads",
}
"""Unit of every number, and of every number in a list, by the setting's name."""

_OF_GROUP = {("SupervisedConfig", "batch_size"): "examples"}

_WORDS = {
    "lr": "learning rate", "lora": "LoRA", "kl": "KL", "exo": "EXO", "dpo": "DPO", "cal": "Cal",
    "simpo": "SimPO", "adam": "Adam", "id": "ID", "max": "maximum", "min": "minimum",
}  # fmt: skip
_LABELS = {
    "name_or_path": "Name or path",
    "runs_dir": "Folder of the runs",
    "cache_dir": "Folder of the caches",
    "max_grad_norm": "Maximum gradient norm",
    "lora_r": "LoRA rank",
    "micro_batch_tokens": "Micro-batch",
    "completion_tokens": "Length of a completion",
    "kl_tokens": "Length of a KL completion",
    "checkpoint_minutes": "Time between resume states",
    "checkpoint_every": "Optimizer steps between resume states",
    "checkpoints_kept": "Resume states kept",
    "limit": "Limit for a smoke run",
    "every": "Steps between evaluations",
    "lr_schedule": "Learning rate schedule",
    "cal_dpo_c": "Cal-DPO weight",
    "kl_paper_mode": "KL as in the paper",
    "simpo_gamma_beta_ratio": "SimPO margin over beta",
}


def unit_of(name: str, group: str = "") -> str:
    """Unit of a setting; empty where it has no number."""
    return _OF_GROUP.get((group, name), UNITS.get(name, ""))


def label_of(name: str, group: str = "", title: str = "") -> str:
    """``max_length`` as a person reads it: ``Maximum length (tokens)``; ``title`` if it has one."""
    words = [_WORDS.get(word, word) for word in name.split("_")]
    text = title or _LABELS.get(name, " ".join(words))
    unit = unit_of(name, group)
    is_said = not unit or unit == NONE or f"({unit}" in text
    return f"{text[0].upper()}{text[1:]}" + ("" if is_said else f" ({unit})")


def labelled(schema: dict[str, Any], group: type[BaseModel]) -> None:
    """Give the JSON schema of a group of settings its labels, units and order."""
    schema["title"] = label_of(group.__name__.removesuffix("Config").lower())
    titles = {name: field.title or "" for name, field in group.model_fields.items()}
    for position, (name, field) in enumerate(schema.get("properties", {}).items()):
        field["title"] = label_of(name, group.__name__, titles[name])
        field["position"] = position
        _flatten(field)
        if unit := unit_of(name, group.__name__):
            field["unit"] = unit


def _flatten(field: dict[str, Any]) -> None:
    """A setting that may be left empty is shown as what it is otherwise, not as a choice of two."""
    options = field.get("anyOf", [])
    filled = [option for option in options if option != {"type": "null"}]
    if len(filled) == 1 and len(options) == 2:
        del field["anyOf"]
        field |= filled[0]
        if field.get("default", 0) is None:
            del field["default"]
