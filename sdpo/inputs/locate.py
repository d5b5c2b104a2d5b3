"""Find where the names in a recipe lead: a folder, a file, or a commit of the hub.

Models are looked up as files, without torch; their content is known by its digest, a data set of
the hub by its commit.
"""

import os
import re
from pathlib import Path

from sdpo.config import ModelConfig, SourceConfig, WinRateConfig
from sdpo.data.first_bytes import check_written
from sdpo.data.prompt_file import check_prompts
from sdpo.data.readers import default_name
from sdpo.errors import DataError, ModelError
from sdpo.identity.adapter_folder import base_folder, check_precision, is_adapter, named_base
from sdpo.identity.canonical import digest_of
from sdpo.identity.model_folder import check_folder
from sdpo.inputs import demo
from sdpo.inputs.cache_folder import claim_cache
from sdpo.system.files import file_digest, folder_digests
from sdpo.system.nearby import did_you_mean

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


def is_path(name: str) -> bool:
    """Return whether a name is meant as a path even if nothing is there."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or not _HUB_NAME.fullmatch(name)


def model_folder(given: ModelConfig, *, cache: Path, where: str = "model.name_or_path") -> Path:
    """Return the folder of a model with its tokenizer.

    ``where`` is the setting that names it, for messages.

    Raises:
        ModelError: there is none, here or on the hub.
    """
    name = given.name_or_path
    if not name:
        raise ModelError(f"{where} is empty: give a model folder or a hub name")
    if name.startswith("demo:"):
        claim_cache(cache)
        return demo.materialise(name, cache / "demo")
    local = Path(name).expanduser()
    if local.is_dir():
        _check_model_folder(local, given)
        return Path(os.path.normpath(local.absolute()))
    if is_path(name):
        raise ModelError(f"{where}: no folder at {local.absolute()}{did_you_mean(local)}")
    return _hub_model(given, where=where)


def model_name(given: ModelConfig, folder: Path) -> dict[str, str]:
    """Return how a recipe names the model: a folder by its path, a hub model by name and commit."""
    if given.name_or_path.startswith("demo:") or Path(given.name_or_path).expanduser().is_dir():
        return {"name_or_path": str(folder), "revision": ""}
    return {"name_or_path": given.name_or_path, "revision": folder.name}


def _check_model_folder(folder: Path, given: ModelConfig) -> None:
    code = given.trust_remote_code
    check_precision(folder, given.base_precision)
    if not is_adapter(folder) and not (folder / "config.json").is_file():
        raise ModelError(f"{folder.absolute()} is not a model folder: it has no config.json")
    if not (folder / "tokenizer.json").is_file() and not list(folder.glob("tokenizer*")):
        raise ModelError(
            f"{folder.absolute()} has no tokenizer (tokenizer.json): save it beside the model with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    check_folder(folder, code=code)
    if is_adapter(folder):
        name, revision = named_base(folder)
        if name and not is_path(name) and not any(p.is_dir() for p in (folder / name, Path(name))):
            _snapshot(name, revision, code=code, where=f"base_model_name_or_path of {folder}")
        check_folder(base_folder(folder), code=code)


def _hub_model(given: ModelConfig, *, where: str) -> Path:
    code = given.trust_remote_code
    folder = _snapshot(given.name_or_path, given.revision, code=code, where=where)
    _check_model_folder(folder, given)
    return folder


def _snapshot(name: str, revision: str, *, code: bool, where: str) -> Path:
    """Return the folder of a hub model in the local cache, into which it is brought if need be."""
    # huggingface_hub takes half a second and most runs use local folders.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [*_MODEL_FILES, "*.py"] if code else _MODEL_FILES
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{where}: {name} is not a local folder ({Path(name).absolute()}), not in "
            f"the local hub cache, and the hub cannot be reached{did_you_mean(Path(name))}"
        ) from error
    except Exception as error:  # the hub's HTTP library has errors of its own
        raise ModelError(f"{where}: {name}: not to be had: {error}") from error


def locate_source(source: SourceConfig, *, cache: Path) -> SourceConfig:
    """Return ``source`` with a name, and an absolute path or a hub name with its commit.

    Raises:
        DataError: it has no path, or the hub does not have it.
    """
    if not source.path:
        raise DataError(f"data source `{source.name or '?'}` has no path: name a file or data set")
    name = source.name or default_name(source.path.removeprefix("demo:"))
    if source.path.startswith("demo:"):
        claim_cache(cache)
        made = demo.materialise(source.path, cache / "demo")
        return source.model_copy(update={"name": name, "path": str(made)})
    local = Path(source.path).expanduser()
    is_data_file = default_name(source.path) != local.name
    if local.exists() or is_path(source.path) or is_data_file:
        path = os.path.normpath(local.absolute())
        return source.model_copy(update={"name": name, "path": path})
    commit = _hub_data_commit(source.path, source.revision)
    return source.model_copy(update={"name": name, "revision": commit})


def with_prompts(source: SourceConfig, *, cache: Path) -> SourceConfig:
    """Return a generated source with the absolute path of its prompts, or a hub name with its
    commit.

    Raises:
        DataError: nothing is there, and the hub does not have it.
    """
    settings = source.generate
    if not settings.prompts:
        return source
    local = Path(settings.prompts).expanduser()
    given = SourceConfig(
        name=source.name, path=settings.prompts, revision=settings.prompts_revision
    )
    found = locate_source(given, cache=cache)
    if Path(found.path).is_absolute() and not Path(found.path).exists():
        raise DataError(
            f"data source `{source.name}`: no prompts at {local.absolute()}{did_you_mean(local)}: "
            "generate.prompts names a file, a folder or a data set of the hub"
        )
    changes = {"prompts": found.path, "prompts_revision": found.revision}
    return source.model_copy(update={"generate": settings.model_copy(update=changes)})


def prompts_path(win_rate: WinRateConfig) -> str:
    """Return the absolute path of the prompts of win rates, which can be read.

    Raises:
        DataError: nothing is there, or its first row has no such column.
    """
    where, local = "evaluation.win_rate", Path(win_rate.prompt_file).expanduser()
    if not local.exists():
        raise DataError(
            f"{where}.prompt_file: no prompts at {local.absolute()}{did_you_mean(local)}: it names "
            "a local file or folder"
        )
    path = os.path.normpath(local.absolute())
    check_prompts(path, column=win_rate.prompt_column, setting=f"{where}.prompt_column")
    return path


def _hub_data_commit(name: str, revision: str) -> str:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    cached = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    reference = cached / "refs" / (revision or "main")
    try:
        commit = HfApi().dataset_info(name, revision=revision or None).sha
    except HFValidationError as error:
        raise DataError(f"data source {name}: {error}") from error
    except Exception as error:  # the hub's HTTP library has errors of its own
        if reference.is_file():
            return reference.read_text().strip()
        raise DataError(
            f"data source {name}: no file at {Path(name).absolute()}, not in the local hub cache, "
            f"and not to be had from the hub ({type(error).__name__}){did_you_mean(Path(name))}"
        ) from error
    return commit or revision


def data_digest(path: str, revision: str) -> str:
    """Return the digest of a located source: of its content, or of a hub name with its commit.

    Raises:
        DataError: nothing is at the path, or a file that was never written.
    """
    local = Path(path)
    if local.is_file():
        check_written(local)
        return file_digest(local)
    if local.is_dir():
        return digest_of(folder_digests(local))
    if os.path.isabs(path):  # noqa: PTH117 - hub names are not paths
        raise DataError(f"no data at {path}{did_you_mean(local)}")
    return digest_of([path, revision])
