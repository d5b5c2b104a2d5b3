"""Choose the files of a model folder that are the model: they alone are digested and loaded.

transformers chooses by rules of its own: `model.safetensors` before an index, an adapter over the
weights, a file that config.json names, a tokenizer file of another version. So nothing is ever
loaded from the folder itself, but from a view (:func:`view_of`): a temporary folder with links to
exactly those files that are digested here. Where transformers would choose others in the folder,
another program that opens it would get another model: such a folder is refused by name.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdpo.errors import IntegrityError, ModelError, SdpoError
from sdpo.identity.adapter_folder import (
    ADAPTER,
    ADAPTER_BASE,
    adapter_weights,
    base_folder,
    is_adapter,
    of_base,
    read_object,
)
from sdpo.system.files import file_digest, read_json
from sdpo.system.json_values import Json, JsonObject

CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TEMPLATES = "additional_chat_templates"

_READ = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    f"{_TEMPLATES}/*.jinja",
    ADAPTER,
    ADAPTER_BASE,
)
"""These files are read beside a model's weights. tokenizer.json is required, so vocabularies in
other forms (tokenizer.model, vocab.json, merges.txt) decide nothing."""

_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
    "*.model",
    f"{_TEMPLATES}/*.jinja",
)
"""These are copied into a published model: other programs want the other forms too."""

_BINARY = {".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt"}
_DOCUMENTS = ("README*", "LICEN[CS]E*", "NOTICE*", "*.md", ".*", "lineage.json")


def read_config(folder: Path) -> dict[str, Json]:
    """Read ``config.json`` of a model folder; an adapter without one has that of its base.

    Raises:
        ModelError: it is not there, is no JSON object, or has transformers read another file.
    """
    path = folder / CONFIG
    _check_file(folder, path)
    if not path.is_file():
        if is_adapter(folder):
            return read_config(base_folder(folder))
        raise ModelError(f"{folder} is not a model folder: it has no {CONFIG}")
    config = read_object(path)
    versions = config.get("configuration_files")
    others = versions if isinstance(versions, list) else []
    if others := [n for n in others if isinstance(n, str) and n != CONFIG and n[:7] == "config."]:
        raise ModelError(
            f"{path} leaves it to transformers to read another file (configuration_files: "
            f"{others[0]}): give a folder whose {CONFIG} has the configuration itself"
        )
    return config


def text_config(config: JsonObject) -> JsonObject:
    """Return the part of a configuration that describes the language model: mostly all of it."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the model's weights, sorted by name.

    Of an adapter that is its own file: :func:`sdpo.identity.adapter_folder.base_folder` has the
    rest. They may be links to anywhere: their tensors are digested, and never published.

    Raises:
        ModelError: there are none, or transformers would load others: the message says which.
    """
    if is_adapter(folder):
        return [adapter_weights(folder)]
    config, index, single = read_config(folder), folder / _INDEX, folder / _WEIGHTS
    files: list[Path] = []
    if index.is_file():
        files = _shards(folder, index)
        if files != [single] and single.is_file():
            raise ModelError(
                f"{folder} holds two sets of weights: the files that {_INDEX} names, and "
                f"{_WEIGHTS}, which transformers would load instead. Remove the one that is not "
                "the model"
            )
    elif single.is_file():
        files = [single]
    else:
        raise ModelError(f"no safetensors weights in {folder}: {_what_instead(folder)}")
    if (folder / ADAPTER).exists():
        raise ModelError(
            f"{folder} holds weights and an adapter ({ADAPTER}), which transformers would put "
            "over them. Merge it into the weights (peft's merge_and_unload), or move the adapter's "
            "files elsewhere"
        )
    _check_redirection(folder, config, index.name if index.is_file() else single.name)
    return files


def _shards(folder: Path, index: Path) -> list[Path]:
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not {type(name) for name in shards.values()} == {str}:
        raise ModelError(f"{index} is damaged: it does not say which file each tensor is in")
    names = sorted(set(shards.values()))
    if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ModelError(f"{index} names a file outside the folder: {outside[0]}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder}: {index.name} names files that are not there: {missing}")
    return [folder / name for name in names]


def _what_instead(folder: Path) -> str:
    pickles = sorted(p.name for p in folder.glob("*.bin"))
    if pickles:
        return f"it has {pickles}, and pickles are never loaded: convert the model to safetensors"
    if (folder / _WEIGHTS).is_symlink():
        return f"{_WEIGHTS} is a link to {(folder / _WEIGHTS).readlink()}, where no file is"
    return "a model folder has model.safetensors (or shards with an index) and config.json"


def _check_redirection(folder: Path, config: object, chosen: str) -> None:
    """Refuse a configuration, or one within it, that names other weights than ``chosen``."""
    if isinstance(config, dict):
        named = config.get("transformers_weights")
        if named is not None and named != chosen:
            raise ModelError(
                f"{folder / CONFIG} names other weights (transformers_weights: {named!r}), which "
                f"transformers would load instead of {chosen}: remove the key, or give a folder "
                "that holds those weights alone"
            )
    for value in config.values() if isinstance(config, dict) else ():
        _check_redirection(folder, value, chosen)


def read_files(folder: Path, *, code: bool = False) -> list[Path]:
    """Return the files of a model that are read beside its weights; with ``code``, Python files
    too.

    Raises:
        ModelError: one is no file, or a link that leads out of the folder.
    """
    return _matching(folder, (*_READ, *(["**/*.py"] if code else [])))


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the tokenizer's files, in any form, that are copied into every model made from this
    one.

    Raises:
        ModelError: one is no file, or a link that leads out of the folder.
    """
    files = _matching(folder, _TOKENIZER)
    return [path for path in files if path.suffix not in _BINARY]


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    # glob does not follow a name without wildcards to a dangling link.
    found |= {folder / name for name in patterns if "*" not in name}
    files = [path for path in sorted(found) if os.path.lexists(path)]
    return [path for path in files if _check_file(folder, path)]


def _check_file(folder: Path, path: Path) -> bool:
    """Return whether there is a file; a folder, whatever its name, is none.

    Raises:
        ModelError: it is a pipe, a device, a link to nothing, or one that leads out of the folder.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            raise ModelError(
                f"{path} is a link to {path.readlink()}, which leads nowhere: put the file there"
            ) from error
        return False
    if stat.S_ISDIR(mode):
        return False
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path} is neither a file nor a folder: a model has files alone")
    where, home = path.resolve(), folder.resolve()
    inside = any(where.is_relative_to(place) for place in _own_places(home))
    if not inside and not _is_published(folder, path):
        raise ModelError(
            f"{path} is a link to {where}, outside the model's folder, and would be published as a "
            "part of the model: put a copy of the file in its place"
        )
    return True


def _own_places(home: Path) -> list[Path]:
    """Return where a model's files may be: its folder, and the repository's of a hub snapshot."""
    if home.parent.name == "snapshots":
        return [home, home.parent.parent / "blobs"]
    return [home]


def _is_published(folder: Path, path: Path) -> bool:
    """Return whether the folder is a step's, whose record has the file with its digest.

    A run that shares steps with one on another disk refers to its files. Nobody can write the
    digest of a file into a record without having read the file.
    """
    try:
        files = read_json(folder.parent / "record.json")["files"]
        return bool(
            files[f"{folder.parent.name}/{path.relative_to(folder.parent)}"] == file_digest(path)
        )
    except (OSError, IntegrityError, KeyError, TypeError):
        return False


def check_folder(folder: Path, *, code: bool = False) -> None:
    """Refuse what could not be loaded or published, before anything is trained.

    Raises:
        ModelError: see :func:`weight_files`, :func:`read_files` and :func:`tokenizer_files`.
    """
    weight_files(folder)
    read_files(folder, code=code)
    tokenizer_files(folder)


def unused_files(folder: Path, *, code: bool = False) -> list[str]:
    """Return what the folder has that is neither loaded nor published, documents aside; sorted."""
    used = {*weight_files(folder), *read_files(folder, code=code), *tokenizer_files(folder)}
    tops = {folder / path.relative_to(folder).parts[0] for path in used} | {folder / _INDEX}
    return sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in folder.iterdir()
        if path not in tops and not any(path.match(pattern) for pattern in _DOCUMENTS)
    )


@contextmanager
def view_of(folder: Path, *, weights: bool = True, code: bool = False) -> Iterator[Path]:
    """Yield a temporary folder with links to the model's files alone, to load the model from.

    It has the folder's name; nothing is copied, so it may be on another file system. Without
    ``weights`` it has the tokenizer and the configuration alone.

    Raises:
        ModelError: the folder is refused, or a file of the model was changed before the block
            ended: then it is not known what was loaded.
    """
    files = read_files(folder, code=code)
    if weights:
        files += weight_files(folder)
        files += [index] if (index := folder / _INDEX).is_file() else []
    before = [_state(path) for path in files]
    with tempfile.TemporaryDirectory(prefix="sdpo-model-") as temporary:
        view = Path(temporary) / (folder.name or "model")
        for path in files:
            link = view / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        if is_adapter(folder) and not (view / CONFIG).exists():  # tokenizers are chosen by it
            (view / CONFIG).symlink_to(of_base(folder, CONFIG).resolve())
        yield view
    changed = [path for path, state in zip(files, before, strict=True) if _state(path) != state]
    if changed:
        raise ModelError(f"{changed[0]} was changed while the model was loaded: start again")


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn whatever a library raises about ``what`` within the block into one message.

    Libraries have errors of their own for what they cannot use, and any other for what they did
    not foresee; the cause stays with the message, for the log.

    Raises:
        ModelError: something was raised that is neither of this project nor want of memory.
    """
    try:
        yield
    except (SdpoError, MemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{what} cannot be loaded: {type(error).__name__}: {error}") from error


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
