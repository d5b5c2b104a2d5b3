"""Carry over what several tools have under the same names: LoRA, quantised bases, sources."""

from collections.abc import Mapping, Sequence

from sdpo.migration.reading import Reading
from sdpo.system.json_values import Json

_ATTENTION = {
    "sdpa": "sdpa",
    "eager": "eager",
    "flash_attention_2": "flash_attention_2",
    "fa2": "flash_attention_2",
}


def carry_attention(reading: Reading, name: str) -> None:
    """Put the attention kernel into the recipe, or note that it is not here."""
    value = reading.text(name)
    if value in _ATTENTION:
        reading.put("model.attention", _ATTENTION[value], name)
    elif value not in ("", "auto"):
        reading.lack(name, "model.attention is sdpa, eager or flash_attention_2; here sdpa")


def carry_lora(reading: Reading, *, rank: str, targets: list[str], targets_of: str) -> None:
    """Put adapters into the recipe: ``rank`` names the rank's setting, ``targets`` the modules."""
    reading.put("training.lora_r", reading.whole(rank), rank)
    reading.put("training.lora_alpha", reading.whole("lora_alpha"), "lora_alpha")
    reading.put("training.lora_dropout", float(reading.number("lora_dropout")), "lora_dropout")
    if targets:
        reading.put("training.lora_target_modules", targets, targets_of)
    else:
        reading.put("training.lora_target_modules", ["all-linear"])
        reading.differ(
            f"{targets_of} is not said: peft then has a list of its own for each architecture; "
            "here all linear layers get adapters (training.lora_target_modules)"
        )


def carry_bits(reading: Reading, *, four: bool, eight: bool, names: tuple[str, ...]) -> None:
    """Put the base of adapters in 4 or 8 bits into the recipe."""
    if four or eight:
        reading.put("model.base_precision", "nf4" if four else "int8", *names)


def add_source(reading: Reading, path: str, *, subset: str = "", split: str = "train") -> None:
    """Add a source of pairs to the recipe; a slice of a split is the whole one, with a note."""
    whole, bracket, part = split.partition("[")
    if bracket:
        reading.differ(
            f"split: {whole}[{part}: a source is a whole split here, of which `max_pairs` draws so "
            "many"
        )
    source: dict[str, Json] = {"path": path}
    if subset:
        source["subset"] = subset
    if whole not in ("", "train"):
        source["split"] = whole
    if reading.gives("data.sources"):
        return
    reading.tree.setdefault("data", {}).setdefault("sources", []).append(source)


def files_of(value: Json) -> list[str]:
    """Return the files that `data_files` names for training, in any of its forms."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return files_of(value.get("train", next(iter(value.values()), None)))
    if isinstance(value, Sequence):
        return [each for each in value if isinstance(each, str)]
    return []
