"""Make a recipe of a script with TRL's DPOConfig, or of a file for TRL's command line.

Defaults are those of TRL 1.16: DPOConfig, ModelConfig, ScriptArguments.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sdpo.config.elsewhere_several import SYNCHRONISED
from sdpo.errors import ConfigError
from sdpo.migration.files import check_some_known, settings_of
from sdpo.migration.parts import (
    add_source,
    carry_attention,
    carry_bits,
    carry_lora,
    files_of,
)
from sdpo.migration.reading import Reading, Value
from sdpo.migration.script import ROWS_CHANGED, script_settings
from sdpo.migration.trainer import TRAINER_DEFAULTS, carry_trainer, carry_weights
from sdpo.migration.written import Migrated, migrated, overridden
from sdpo.objectives import OBJECTIVES, other_name
from sdpo.system.json_values import Json

TRL = "TRL"
DPO_DEFAULTS: dict[str, Json] = {
    **TRAINER_DEFAULTS,
    **{"learning_rate": 1e-6, "gradient_checkpointing": True, "bf16": None},
    **{"beta": 0.1, "label_smoothing": 0.0, "loss_type": ["sigmoid"], "max_length": 1024},
    **{"truncation_mode": "keep_start", "disable_dropout": True, "trust_remote_code": False},
    "f_divergence_type": "reverse_kl",
}
MODEL_DEFAULTS: dict[str, Json] = {
    **{"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "bnb_4bit_quant_type": "nf4"},
    **{"use_rslora": False, "use_dora": False, "load_in_4bit": False, "load_in_8bit": False},
    **{"dtype": "float32", "model_revision": "main", "use_peft": False},
    "dataset_train_split": "train",
}
_NO_LIMIT = 2**20
_NLL = "sft"
WITHOUT_EFFECT = (
    *("precompute_ref_log_probs", "precompute_ref_batch_size", "dataset_num_proc", "padding_free"),
    *("pad_to_multiple_of", "average_tokens_across_devices", "remove_unused_columns", "do_train"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "lora_task_type", "dataset_test_split", "disable_tqdm"),
    *("per_device_eval_batch_size", "log_level", "ddp_timeout", "use_cache", "local_rank"),
    *("dataloader_in_order", "eval_do_concat_batches", "log_on_each_node", "skip_memory_metrics"),
    "logging_nan_inf_filter",
)
"""Names of what changes no result there, or what this project does by itself."""


def from_trl(path: Path, *, overrides: Sequence[str] = (), devices: int = 1) -> Migrated:
    """Make a recipe of a Python script with a DPOConfig, or of TRL's YAML or JSON.

    Args:
        path: the script, which is read and never run, or the file.
        overrides: settings of this project, as ``training.beta=0.2``, which win.
        devices: devices that the batch is spread over there.

    Raises:
        ConfigError: the file cannot be read, or a setting that counts is not possible here.
    """
    if path.suffix == ".py":
        settings: Mapping[str, Value] = script_settings(path)
    else:
        settings = settings_of(path)
        check_some_known(
            settings,
            frozenset({*DPO_DEFAULTS, *MODEL_DEFAULTS, "max_prompt_length"}),
            path=path,
            tool=TRL,
        )
    return migrated(_carried(settings, overrides, devices), overrides=overrides)


def _carried(settings: Mapping[str, Value], overrides: Sequence[str], devices: int) -> Reading:
    defaults = {**MODEL_DEFAULTS, **DPO_DEFAULTS}
    reading = Reading(settings, tool=TRL, defaults=defaults, overridden=overridden(overrides))
    if not reading.flag("fp16"):
        reading.default("bf16", True)
    _model(reading)
    _data(reading)
    reading.put("partition.strategy", "single")
    _objective(reading)
    carry_trainer(reading, devices=devices)
    _reference(reading)
    _adapters(reading)
    for name in WITHOUT_EFFECT:
        reading.get(name)
    return reading


def _model(reading: Reading) -> None:
    if name := reading.text("model_name_or_path"):
        reading.put("model.name_or_path", name)
    extra = reading.get("model_init_kwargs")
    extra = dict(extra) if isinstance(extra, Mapping) else {}
    revision = str(extra.pop("revision", None) or reading.text("model_revision"))
    if revision not in ("", "main", "None"):
        reading.put("model.revision", revision, "model_revision", "model_init_kwargs")
    attention = extra.pop("attn_implementation", None)
    if attention and not reading.said("attn_implementation"):
        inner = Reading({"attn_implementation": attention}, tool=TRL, defaults={})
        carry_attention(inner, "attn_implementation")
        reading.tree.setdefault("model", {}).update(inner.tree.get("model", {}))
        reading.notes.absent += inner.notes.absent
    carry_attention(reading, "attn_implementation")
    if reading.flag("trust_remote_code") or extra.pop("trust_remote_code", None):
        reading.put("model.trust_remote_code", True, "trust_remote_code")
    carry_weights(reading, "dtype", "torch_dtype")
    for name, value in extra.items():
        if name in ("dtype", "torch_dtype"):
            reading.differ(f"model_init_kwargs: {name}: {value}: weights that train are fp32 here")
        else:
            reading.lack("model_init_kwargs", f"`{name}` has no counterpart")
    if reading.said("chat_template_path"):
        reading.put("model.chat_template", reading.text("chat_template_path"), "chat_template_path")


def _data(reading: Reading) -> None:
    split = reading.text("dataset_train_split")
    subset = reading.text("dataset_config")
    several = reading.get("datasets")
    if isinstance(several, Sequence) and not isinstance(several, str):
        for each in several:
            if isinstance(each, Mapping) and each.get("path"):
                _source_of_mixture(reading, each)
    elif files := files_of(reading.get("data_files")):
        reading.get("dataset_name")
        for file in files:
            add_source(reading, file, split=split)
    elif name := reading.text("dataset_name"):
        add_source(reading, name, subset=subset, split=split)
    unlimited = reading.nulled("max_length")
    length = _NO_LIMIT if unlimited else reading.whole("max_length")
    reading.put("data.max_length", length, *(() if unlimited else ("max_length",)))
    if unlimited:
        reading.differ(f"max_length: null cuts nothing there; here {_NO_LIMIT} tokens are kept")
    if reading.said("max_prompt_length"):
        prompt = reading.whole("max_prompt_length")
        reading.put("data.max_prompt_length", prompt, "max_prompt_length")
    if reading.said(ROWS_CHANGED):
        reading.lack(ROWS_CHANGED, "code of the script: save the rows to a file, and name that")
    if reading.text("truncation_mode") == "keep_end":
        reading.lack("truncation_mode", "the start of a sequence is kept (data.max_length)")


def _source_of_mixture(reading: Reading, each: Mapping[str, Json]) -> None:
    files = files_of(each.get("data_files"))
    for path in files or [str(each["path"])]:
        split = str(each.get("split") or "train")
        add_source(reading, path, subset=str(each.get("name") or ""), split=split)
    for name in ("data_dir", "columns", "fraction"):
        if each.get(name) is not None:
            reading.notes.absent.append(f"datasets: {name} of {each['path']}: no counterpart")


def _objective(reading: Reading) -> None:
    """Put the objective into the recipe.

    Raises:
        ConfigError: it is not here, and the user gives none.
    """
    path = "training.objective"
    losses = reading.texts("loss_type")
    weights = _weights(reading, losses)
    preference = [each for each in losses if each != _NLL] or losses[:1]
    if reading.text("f_divergence_type") != "reverse_kl" and not reading.gives(path):
        raise ConfigError(
            f"f_divergence_type: {reading.text('f_divergence_type')} has no counterpart, only the "
            f"reverse KL is here. If that will do: --set {path}=dpo"
        )
    beta = reading.number("beta")
    reading.put("training.beta", beta, "beta")
    if reading.gives(path):
        reading.get("label_smoothing")
        return
    name = other_name(preference[0]) if len(preference) == 1 else ""
    known = name or (preference[0] if preference[0] in OBJECTIVES else "")
    scaled = weights.get(preference[0], 1.0) != 1
    if len(preference) > 1 or not known or (scaled and len(losses) > 1):
        raise ConfigError(
            f"loss_type: {', '.join(losses)} has no counterpart: an objective here is one of "
            f"{', '.join(OBJECTIVES)}, with a weight of 1, and beside it the chosen side's NLL by "
            f"training.rpo_alpha. Choose one: --set {path}=dpo"
        )
    reading.put(path, known, "loss_type")
    _smoothing(reading, known)
    if len(losses) > 1:
        reading.put("training.rpo_alpha", weights[_NLL], "loss_weights", "loss_type")
        reading.differ("the NLL is a mean over each pair's tokens here, over the batch's there")
    elif reading.said("rpo_alpha"):
        reading.put("training.rpo_alpha", reading.number("rpo_alpha"), "rpo_alpha")
    if reading.said("router_aux_loss_coef"):
        weight = reading.number("router_aux_loss_coef")
        reading.put("training.router_aux_loss", weight, "router_aux_loss_coef")


def _weights(reading: Reading, losses: list[str]) -> dict[str, float]:
    """Return the weight of each loss.

    Raises:
        ConfigError: they are not as many numbers as losses.
    """
    given = reading.get("loss_weights")
    if given is None:
        return dict.fromkeys(losses, 1.0)
    numbers = (
        [each for each in given if isinstance(each, int | float)]
        if (isinstance(given, Sequence) and not isinstance(given, str))
        else []
    )
    if len(numbers) != len(losses):
        raise ConfigError(f"loss_weights are {given!r}, where loss_type has {len(losses)} losses")
    return {name: float(weight) for name, weight in zip(losses, numbers, strict=True)}


def _smoothing(reading: Reading, objective: str) -> None:
    smoothing = reading.number("label_smoothing")
    if objective == "robust":
        reading.put("training.label_smoothing", float(smoothing), "label_smoothing")
    elif objective == "exo":
        reading.put("training.exo_epsilon", float(smoothing), "label_smoothing")
    elif smoothing:
        reading.differ(
            f"label_smoothing: {smoothing} does nothing for this loss_type in TRL 1.16, and is not "
            "carried over; before 1.0 it made sigmoid what is training.objective: cdpo here"
        )


def _reference(reading: Reading) -> None:
    if model := reading.text("ref_model"):
        reading.put("training.reference", "model")
        reading.put("training.reference_model", model, "ref_model")
    if reading.flag("sync_ref_model"):
        reading.lack("sync_ref_model", SYNCHRONISED)
    if reading.said("disable_dropout") and not reading.flag("disable_dropout"):
        reading.differ("disable_dropout: false: dropout is always off here")
    for name in ("ref_model_mixup_alpha", "ref_model_sync_steps", "f_alpha_divergence_coef"):
        reading.get(name)


def _adapters(reading: Reading) -> None:
    names = (
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "use_rslora",
        "use_dora",
    )
    four, eight = reading.flag("load_in_4bit"), reading.flag("load_in_8bit")
    kind = reading.text("bnb_4bit_quant_type")
    if not reading.flag("use_peft"):
        for name in names:
            reading.get(name)
        if four or eight:
            reading.lack("load_in_4bit" if four else "load_in_8bit", "no adapter is trained on it")
        return
    targets = reading.texts("lora_target_modules")
    carry_lora(reading, rank="lora_r", targets=targets, targets_of="lora_target_modules")
    for name, path in (
        ("use_rslora", "training.lora_rslora"),
        ("use_dora", "training.lora_dora"),
    ):
        if reading.flag(name):
            reading.put(path, True, name)
    if saved := reading.texts("lora_modules_to_save"):
        reading.put("training.lora_modules_to_save", saved, "lora_modules_to_save")
    carry_bits(reading, four=four, eight=eight, names=("load_in_4bit", "load_in_8bit"))
    if four and kind != "nf4":
        reading.lack("bnb_4bit_quant_type", "four bits are nf4 here (model.base_precision)")
    if reading.said("use_bnb_nested_quant"):
        reading.lack("use_bnb_nested_quant", "the scales of nf4 are not quantised again here")
