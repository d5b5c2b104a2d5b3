"""Make a recipe of LLaMA-Factory's YAML or JSON for `stage: dpo`.

Defaults are those of its hparams (finetuning_args.py, data_args.py) and of transformers' trainer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sdpo.errors import ConfigError
from sdpo.migration.files import check_some_known, settings_of
from sdpo.migration.parts import add_source, carry_attention, carry_bits, carry_lora
from sdpo.migration.reading import Reading
from sdpo.migration.trainer import TRAINER_DEFAULTS, carry_trainer
from sdpo.migration.written import Migrated, migrated, overridden
from sdpo.system.json_values import Json

LLAMA_FACTORY = "LLaMA-Factory"
LLAMA_FACTORY_DEFAULTS: dict[str, Json] = {
    **TRAINER_DEFAULTS,
    **{"pref_beta": 0.1, "pref_loss": "sigmoid", "pref_ftx": 0.0, "dpo_label_smoothing": 0.0},
    **{"simpo_gamma": 0.5, "cutoff_len": 2048, "stage": "sft", "finetuning_type": "lora"},
    **{"lora_rank": 8, "lora_dropout": 0.0, "lora_target": "all", "dataset_dir": "data"},
    # It is on there unless it is disabled.
    "gradient_checkpointing": True,
}
_OBJECTIVES = {
    "sigmoid": "dpo",
    "hinge": "hinge",
    "ipo": "ipo",
    "orpo": "orpo_one_stage",
    "simpo": "simpo",
}
_INFO = "dataset_info.json"


def from_llama_factory(path: Path, *, overrides: Sequence[str] = (), devices: int = 1) -> Migrated:
    """Make a recipe of LLaMA-Factory's file of settings.

    Args:
        path: the YAML or JSON file; its data sets are looked up in `dataset_dir`.
        overrides: settings of this project, as ``training.beta=0.2``, which win.
        devices: devices that the batch is spread over there.

    Raises:
        ConfigError: the file cannot be read, or a setting that counts is not possible here.
    """
    settings = settings_of(path)
    check_some_known(settings, frozenset(LLAMA_FACTORY_DEFAULTS), path=path, tool=LLAMA_FACTORY)
    reading = Reading(
        settings,
        tool=LLAMA_FACTORY,
        defaults=LLAMA_FACTORY_DEFAULTS,
        overridden=overridden(overrides),
    )
    if (stage := reading.text("stage")) != "dpo":
        raise ConfigError(f"{path}: stage is {stage}, and only `stage: dpo` trains on pairs here")
    _model(reading)
    _data(reading)
    reading.put("partition.strategy", "single")
    _objective(reading)
    carry_trainer(reading, devices=devices)
    _rest(reading)
    return migrated(reading, overrides=overrides)


def _model(reading: Reading) -> None:
    if name := reading.text("model_name_or_path"):
        reading.put("model.name_or_path", name, "model_name_or_path")
    if reading.text("model_revision") not in ("", "main"):
        reading.put("model.revision", reading.text("model_revision"), "model_revision")
    if reading.flag("trust_remote_code"):
        reading.put("model.trust_remote_code", True, "trust_remote_code")
    if reading.text("flash_attn") == "disabled":
        reading.put("model.attention", "eager", "flash_attn")
    else:
        carry_attention(reading, "flash_attn")


def _data(reading: Reading) -> None:
    folder = Path(reading.text("dataset_dir"))
    names = reading.texts("dataset")
    info: Mapping[str, object] = {}
    if names and (folder / _INFO).is_file():
        info = settings_of(folder / _INFO)
    for name in names:
        entry = info.get(name)
        if not isinstance(entry, Mapping):
            reading.notes.to_fill_in.append(
                f"data.sources: `{name}` is told of in {folder / _INFO}, which has no such entry "
                "here: name its file or its data set of the hub"
            )
            continue
        found = str(entry.get("hf_hub_url") or folder / str(entry.get("file_name")))
        split = str(entry.get("split") or "train")
        add_source(reading, found, subset=str(entry.get("subset") or ""), split=split)
    reading.put("data.max_length", reading.whole("cutoff_len"), "cutoff_len")
    if reading.said("max_samples"):
        reading.put("data.limit", reading.whole("max_samples"), "max_samples")
        reading.differ("max_samples: the first rows there; here drawn, of those that can be used")


def _objective(reading: Reading) -> None:
    """Put the objective into the recipe.

    Raises:
        ConfigError: it is not here, and the user gives none.
    """
    path = "training.objective"
    loss, beta = reading.text("pref_loss"), reading.number("pref_beta")
    smoothing = float(reading.number("dpo_label_smoothing"))
    if loss not in _OBJECTIVES and not reading.gives(path):
        raise ConfigError(
            f"pref_loss: {loss} has no counterpart; here are {', '.join(_OBJECTIVES.values())} "
            f"and others. Choose one: --set {path}=dpo"
        )
    objective = _OBJECTIVES.get(loss, "dpo")
    if objective == "dpo" and smoothing:
        objective = "cdpo"
        reading.put("training.label_smoothing", smoothing, "dpo_label_smoothing")
    reading.put(path, objective, "pref_loss", "dpo_label_smoothing")
    if objective == "orpo_one_stage":
        reading.put("training.preference_weight", beta, "pref_beta")
    else:
        reading.put("training.beta", beta, "pref_beta")
    if objective == "simpo":
        ratio = float(reading.number("simpo_gamma")) / beta
        reading.put("training.simpo_gamma_beta_ratio", ratio, "simpo_gamma", "pref_beta")
    if weight := float(reading.number("pref_ftx")):
        reading.put("training.rpo_alpha", weight, "pref_ftx")
    if model := reading.text("ref_model"):
        reading.put("training.reference", "model")
        reading.put("training.reference_model", model, "ref_model")
    if reading.said("pref_bco_weight") and reading.number("pref_bco_weight"):
        reading.lack("pref_bco_weight", "BCO is no objective here")


def _rest(reading: Reading) -> None:
    if reading.flag("disable_gradient_checkpointing"):
        reading.put("training.gradient_checkpointing", False, "disable_gradient_checkpointing")
    if reading.flag("pure_bf16"):
        reading.put("training.precision", "bf16", "pure_bf16")
        reading.differ("pure_bf16: true: weights that train are fp32 here, bf16 is autocast")
    elif not any(map(reading.said, ("bf16", "fp16"))):
        reading.differ("neither bf16 nor fp16 is said: the model's own precision there, fp32 here")
    kind = reading.text("finetuning_type")
    bits = reading.whole("quantization_bit") if reading.said("quantization_bit") else 0
    if kind not in ("lora", "full"):
        raise ConfigError(f"finetuning_type: {kind} has no counterpart: lora and full are here")
    for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target"):
        reading.get(name)
    if kind == "full":
        return
    if not reading.said("lora_alpha"):
        reading.default("lora_alpha", 2 * reading.whole("lora_rank"))
    targets = reading.texts("lora_target")
    targets = ["all-linear"] if targets == ["all"] else targets
    carry_lora(reading, rank="lora_rank", targets=targets, targets_of="lora_target")
    for name, path in (("use_rslora", "lora_rslora"), ("use_dora", "lora_dora")):
        if reading.flag(name):
            reading.put(f"training.{path}", True, name)
    if saved := reading.texts("additional_target"):
        reading.put("training.lora_modules_to_save", saved, "additional_target")
    carry_bits(reading, four=bits == 4, eight=bits == 8, names=("quantization_bit",))
    if bits not in (0, 4, 8):
        reading.lack("quantization_bit", "a base under adapters has 4 (nf4) or 8 bits here")
