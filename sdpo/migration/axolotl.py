"""Make a recipe of axolotl's YAML for preference training (`rl: dpo`, `ipo`, `simpo`, `orpo`).

Defaults are those of its schemas (training.py, peft.py) and of what it hands to TRL.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sdpo.errors import ConfigError
from sdpo.migration.files import check_some_known, settings_of
from sdpo.migration.parts import add_source, carry_bits, carry_lora, files_of
from sdpo.migration.reading import Reading
from sdpo.migration.trainer import (
    SAME,
    carry_batch,
    carry_epochs,
    carry_optimizer,
    carry_schedule,
    carry_warmup,
)
from sdpo.migration.written import Migrated, migrated, overridden
from sdpo.system.json_values import Json

AXOLOTL = "axolotl"
AXOLOTL_DEFAULTS: dict[str, Json] = {
    **{"micro_batch_size": 1, "gradient_accumulation_steps": 1, "num_epochs": 1.0, "seed": 42},
    **{"weight_decay": 0.0, "max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999},
    **{"adam_epsilon": 1e-8, "optimizer": "adamw_torch_fused", "lr_scheduler": "cosine"},
    **{"warmup_steps": 0, "warmup_ratio": 0.03, "sequence_len": 512, "rl_beta": 0.1},
    **{"lora_dropout": 0.0, "dpo_label_smoothing": 0.0, "simpo_gamma": 0.5},
}
_OBJECTIVES = {"dpo": "dpo", "ipo": "ipo", "simpo": "simpo", "orpo": "orpo_one_stage"}
_ATTENTION = (
    ("flash_attention", "flash_attention_2"),
    ("sdp_attention", "sdpa"),
    ("eager_attention", "eager"),
)


def from_axolotl(path: Path, *, overrides: Sequence[str] = (), devices: int = 1) -> Migrated:
    """Make a recipe of axolotl's file of settings.

    Args:
        path: the YAML file.
        overrides: settings of this project, as ``training.beta=0.2``, which win.
        devices: devices that the batch is spread over there.

    Raises:
        ConfigError: the file cannot be read, or a setting that counts is not possible here.
    """
    settings = settings_of(path)
    check_some_known(settings, frozenset(AXOLOTL_DEFAULTS), path=path, tool=AXOLOTL)
    reading = Reading(
        settings, tool=AXOLOTL, defaults=AXOLOTL_DEFAULTS, overridden=overridden(overrides)
    )
    _model(reading)
    _data(reading)
    reading.put("partition.strategy", "single")
    _objective(reading, path)
    _optimising(reading, devices=devices)
    _adapters(reading)
    reading.name_run("wandb_name", "output_dir")
    return migrated(reading, overrides=overrides)


def _model(reading: Reading) -> None:
    if name := reading.text("base_model"):
        reading.put("model.name_or_path", name, "base_model")
    if reading.said("revision_of_model"):
        reading.put("model.revision", reading.text("revision_of_model"), "revision_of_model")
    if reading.flag("trust_remote_code"):
        reading.put("model.trust_remote_code", True, "trust_remote_code")
    for name, kernel in _ATTENTION:
        if reading.flag(name):
            reading.put("model.attention", kernel, name)


def _data(reading: Reading) -> None:
    sets = reading.get("datasets")
    for each in sets if isinstance(sets, Sequence) and not isinstance(sets, str) else ():
        if not isinstance(each, Mapping) or not each.get("path"):
            continue
        split = str(each.get("split") or "train")
        for found in files_of(each.get("data_files")) or [str(each["path"])]:
            add_source(reading, found, subset=str(each.get("name") or ""), split=split)
        if each.get("type"):
            reading.differ(
                f"datasets: type {each['type']} of {each['path']}: columns are recognised here, or "
                "named in `columns` of the source"
            )
    reading.put("data.max_length", reading.whole("sequence_len"), "sequence_len")


def _objective(reading: Reading, file: Path) -> None:
    """Put the objective into the recipe.

    Raises:
        ConfigError: the file trains on no pairs, or with an objective that is not here.
    """
    path, kind = "training.objective", reading.text("rl")
    if kind not in _OBJECTIVES and not reading.gives(path):
        what = f"rl: {kind} has no counterpart" if kind else "without `rl` it trains on no pairs"
        raise ConfigError(
            f"{file}: {what}; here are {', '.join(_OBJECTIVES)}. Choose one: --set {path}=dpo"
        )
    objective = _OBJECTIVES.get(kind, "dpo")
    inner = reading.get("trl")
    given = inner.get("beta") if isinstance(inner, Mapping) else None
    name = "orpo_alpha" if reading.said("orpo_alpha") and not reading.said("rl_beta") else "rl_beta"
    beta = float(given) if isinstance(given, int | float) else float(reading.number(name))
    smoothing = float(reading.number("dpo_label_smoothing"))
    if smoothing:
        reading.differ(
            f"dpo_label_smoothing: {smoothing} does nothing for `rl: {kind}` in TRL 1.16, and is "
            "not carried over; training.objective: cdpo is what it was before 1.0"
        )
    reading.put(path, objective, "rl")
    weight = "training.preference_weight" if objective == "orpo_one_stage" else "training.beta"
    reading.put(weight, beta, name)
    if objective == "simpo":
        ratio = float(reading.number("simpo_gamma")) / beta
        reading.put("training.simpo_gamma_beta_ratio", ratio, "simpo_gamma")
    nll = "cpo_alpha" if objective == "simpo" else "rpo_alpha"
    if reading.said(nll):
        reading.put("training.rpo_alpha", float(reading.number(nll)), nll)


def _optimising(reading: Reading, *, devices: int) -> None:
    if not reading.said("learning_rate") and not reading.gives("training.learning_rate"):
        raise ConfigError(
            "learning_rate is not said, and axolotl has no default: "
            "--set training.learning_rate=5e-7"
        )
    for name, path in SAME.items():
        if name != "learning_rate" or reading.said(name):
            reading.put(path, reading.number(name), name)
    carry_optimizer(reading, "optimizer")
    carry_schedule(reading, "lr_scheduler")
    carry_warmup(reading, schedule="lr_scheduler")
    carry_epochs(reading, "num_epochs")
    carry_batch(reading, "micro_batch_size", devices=devices)
    reading.put("training.seed", reading.whole("seed"), "seed")
    if reading.said("max_steps"):
        reading.put("training.max_steps", max(0, reading.whole("max_steps")), "max_steps")
    _precision(reading)
    checkpointing = reading.get("gradient_checkpointing")
    on = checkpointing if isinstance(checkpointing, bool) else checkpointing is not None
    reading.put("training.gradient_checkpointing", on, "gradient_checkpointing")


def _precision(reading: Reading) -> None:
    said = reading.get("bf16") if reading.said("bf16") else reading.get("bfloat16")
    half = reading.flag("fp16")
    reading.get("bfloat16")
    if said == "auto":
        precision = "auto"
    else:
        precision = "bf16" if said not in (None, False, "false") or half else "fp32"
    reading.put("training.precision", precision, "bf16", "bfloat16", "fp16")
    if said == "full":
        reading.differ("bf16: full: weights that train are fp32 here, bf16 is autocast")
    if half and not said:
        reading.differ("fp16: true: this project refuses fp16, so bf16 is written")


def _adapters(reading: Reading) -> None:
    kind = reading.text("adapter")
    four, eight = reading.flag("load_in_4bit"), reading.flag("load_in_8bit")
    if not kind:
        return
    if kind not in ("lora", "qlora"):
        raise ConfigError(f"adapter: {kind} has no counterpart: lora and qlora are here")
    targets = ["all-linear"] if reading.flag("lora_target_linear") else []
    named = reading.texts("lora_target_modules")
    carry_lora(reading, rank="lora_r", targets=targets or named, targets_of="lora_target_modules")
    for name, path in (("peft_use_rslora", "lora_rslora"), ("peft_use_dora", "lora_dora")):
        if reading.flag(name):
            reading.put(f"training.{path}", True, name)
    if saved := reading.texts("lora_modules_to_save"):
        reading.put("training.lora_modules_to_save", saved, "lora_modules_to_save")
    carry_bits(reading, four=four, eight=eight, names=("load_in_4bit", "load_in_8bit"))
