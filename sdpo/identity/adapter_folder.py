"""Know a folder that holds a LoRA adapter in peft's own format: what it is, and of which base.

Such a folder is a model as much as one with weights: base + adapter, exactly. One that this project
publishes says in ``adapter_base.json`` which base that is, by digest; of any other one the base is
read. Where the base is, ``adapter_config.json`` says (``base_model_name_or_path``), as peft and
transformers read it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from sdpo.errors import IntegrityError, ModelError
from sdpo.identity.canonical import digest_of
from sdpo.system.files import read_json
from sdpo.system.json_values import Json

ADAPTER = "adapter_config.json"
ADAPTER_BASE = "adapter_base.json"
FULL = "fp32"
"""A base is held in this precision unless ``model.base_precision`` says another."""
ADAPTER_FILES = (ADAPTER, ADAPTER_BASE)
"""A published adapter has these beside its tensors: what it is, and the digest of its base."""
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER_PICKLE = "adapter_model.bin"
_OTHER_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_NOT_IDENTITY = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
"""These keys of adapter_config.json say where things are, or how training began or went: base +
adapter is the same model whatever they say."""


def is_adapter(folder: Path) -> bool:
    """Return whether the folder holds an adapter alone, whose base is elsewhere."""
    return (folder / ADAPTER).is_file() and not any(
        (folder / name).exists() for name in _OTHER_WEIGHTS
    )


def read_object(path: Path) -> dict[str, Json]:
    """Read the JSON object in a file of a model folder.

    Raises:
        ModelError: it is not JSON, or no object.
    """
    try:
        content = read_json(path)
    except IntegrityError as error:
        raise ModelError(str(error)) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it holds no JSON object")
    return content


def read_adapter_config(folder: Path) -> dict[str, Json]:
    """Read ``adapter_config.json`` of an adapter's folder.

    Raises:
        ModelError: it is no JSON object, or the adapter is no LoRA.
    """
    config = read_object(folder / ADAPTER)
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{folder / ADAPTER} is of an adapter of kind {config.get('peft_type')!r}, and only "
            "LoRA is known here: merge it into its base (peft's merge_and_unload)"
        )
    return config


def adapter_weights(folder: Path) -> Path:
    """Return the file that holds an adapter's tensors.

    Raises:
        ModelError: there is none, or a pickle in its place.
    """
    path = folder / _ADAPTER_WEIGHTS
    if path.is_file():
        return path
    if (folder / _ADAPTER_PICKLE).is_file():
        raise ModelError(
            f"{folder} has its adapter as a pickle ({_ADAPTER_PICKLE}), and pickles are never "
            "loaded: save it as safetensors (peft's save_pretrained does)"
        )
    raise ModelError(f"{folder} has {ADAPTER}, and no {_ADAPTER_WEIGHTS} beside it")


def base_folder(folder: Path) -> Path:
    """Return the folder of the weights that belong to the model in ``folder``.

    That is ``folder`` itself where it holds weights; for an adapter, the base that its
    configuration names: a folder, or a hub model that is in the local cache.

    Raises:
        ModelError: the base is not there, or is an adapter itself.
    """
    if not is_adapter(folder):
        return folder
    base = _located(folder, *named_base(folder))
    if is_adapter(base):
        raise ModelError(
            f"{folder} is an adapter of {base}, which is an adapter itself: merge that one into "
            "its base first (peft's merge_and_unload)"
        )
    return base


def named_base(folder: Path) -> tuple[str, str]:
    """Return how an adapter's configuration names its base: a folder or a hub name, a revision."""
    config = read_adapter_config(folder)
    named = (config.get(key) for key in ("base_model_name_or_path", "revision"))
    name, revision = (str(value or "") for value in named)
    return name, revision


def of_base(folder: Path, name: str) -> Path:
    """Return the file ``name`` of a model, which an adapter that has none shares with its base."""
    path = folder / name
    return base_folder(folder) / name if is_adapter(folder) and not path.is_file() else path


def _located(folder: Path, name: str, revision: str) -> Path:
    for path in (folder / Path(name).expanduser(), Path(name).expanduser()):
        if name and path.is_dir():
            return Path(os.path.normpath(path.absolute()))
    if found := _in_hub_cache(name, revision):
        return found
    raise ModelError(
        f"{folder} is an adapter, and its base is not at {name or '(nowhere)'}, nor in the local "
        f"hub cache: put it there, or write into base_model_name_or_path of {folder / ADAPTER} "
        "where it is"
    )


def _in_hub_cache(name: str, revision: str) -> Path | None:
    # huggingface_hub takes half a second, and most bases are local folders.
    if not name or name.startswith((".", "/", "~")):
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (OSError, ValueError):  # not in the cache, or no name that a hub could have
        return None


@dataclass(frozen=True, slots=True)
class RecordedBase:
    """An adapter's own note says this of its base; all is empty where there is no note.

    ``digest`` is that of the base's weights, ``precision`` the one in which its layers were held
    while the adapter was trained.
    """

    digest: str = ""
    precision: str = ""

    def as_held(self, precision: str) -> str:
        """Return the digest of the base held in ``precision``, empty where it is not known."""
        return held_digest(self.digest, precision) if self.digest else ""


def recorded_base(folder: Path) -> RecordedBase:
    """Return what an adapter's own note says of its base.

    Raises:
        ModelError: the note is damaged.
    """
    note = folder / ADAPTER_BASE
    if not note.is_file():
        return RecordedBase()
    said = read_object(note)
    digest, precision = said.get("digest"), said.get("precision", FULL)
    if not isinstance(digest, str) or not isinstance(precision, str):
        raise ModelError(f"{note} is damaged: it does not say which base the adapter is of")
    return RecordedBase(digest, precision)


def check_precision(folder: Path, precision: str) -> None:
    """Refuse an adapter that was trained over a base held in another precision.

    Raises:
        ModelError: the message says in which.
    """
    recorded = recorded_base(folder).precision if is_adapter(folder) else ""
    if recorded and recorded != precision:
        raise ModelError(
            f"{folder} is an adapter of a base in {recorded}, and model.base_precision is "
            f"{precision}, over which it is another model: set model.base_precision: {recorded}"
        )


def held_digest(base: str, precision: str) -> str:
    """Return the digest of weights of digest ``base`` whose layers are held in ``precision``."""
    return base if precision == FULL else digest_of({"base": base, "precision": precision})


def adapter_identity(folder: Path) -> dict[str, Json]:
    """Return what of ``adapter_config.json`` decides what base + adapter computes.

    Names in lists are sorted: peft keeps them as sets.
    """
    config = read_adapter_config(folder)
    return {
        name: _in_order(value)
        for name, value in sorted(config.items())
        if name not in _NOT_IDENTITY and value not in (None, False, {}, [])
    }


def _in_order(value: Json) -> Json:
    """Return a list of names sorted, and anything else as it is."""
    if not isinstance(value, list):
        return value
    names = [item for item in value if isinstance(item, str)]
    return sorted(names) if len(names) == len(value) else value


def adapted_digest(folder: Path, *, base: str, tensors: str) -> str:
    """Return the digest of base + adapter.

    ``base`` is that of the base as it is held, ``tensors`` that of the adapter's tensors.
    """
    return digest_of(
        {"base": base, "adapter": {"config": adapter_identity(folder), "tensors": tensors}}
    )
