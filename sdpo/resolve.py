"""What the names in a recipe stand for: folders, hub commits, this machine's devices.

The resolved configuration is what a run stores. It is reached without torch: models are looked up
as files, devices through the driver.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from sdpo import demo, machine
from sdpo.config import (
    Group,
    LaunchConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    TrainingConfig,
)
from sdpo.data.readers import default_name
from sdpo.digest import model_digest
from sdpo.errors import ConfigError, DataError, ModelError
from sdpo.files import digest_of, file_digest, folder_digests
from sdpo.reference_rules import effective_reference, is_length_normalised
from sdpo.tokens.digest import has_chat_template, tokenizer_digest, vocabulary_digest

G = TypeVar("G", bound=Group)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_BF16_CAPABILITY = (8, 0)  # Ampere


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceModel:
    """A reference that the recipe names. ``tokenizer`` is the digest of its own, where it cuts text
    into other tokens than the run's; empty where both have one vocabulary."""

    folder: Path
    digest: str
    tokenizer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A recipe with everything looked up.

    ``config`` has absolute paths and literal settings. ``inputs`` are the content digests by which
    the run knows its inputs again: ``model``, ``tokenizer`` and ``data.<source>``; and
    ``reference.<where>`` for references that the recipe names. ``references``: those, by
    (``reference_model``, ``reference_revision``) of ``config``.
    """

    config: RunConfig
    model: Path
    inputs: Mapping[str, str]
    has_template: bool
    references: Mapping[tuple[str, str], ReferenceModel] = field(default_factory=dict)


def resolve(config: RunConfig, *, known: Mapping[str, str] = {}) -> Resolved:
    """Look up everything that ``config`` names.

    ``known`` are digests of data, by the names of ``inputs``, that is not looked at: a run with an
    origin has its pairs from there.

    Raises:
        ModelError, DataError, ConfigError: something is not there or not possible here.
    """
    cache = cache_dir(config)
    model = _model_folder(config.model, cache=cache)
    config, references, named = _locate_references(config, model=model, cache=cache)
    sources = [
        source if f"data.{source.name}" in known else _source(source, cache=cache)
        for source in config.data.sources
    ]
    _check_sources(sources)
    supervised = config.supervised
    if supervised.from_source and "data.supervised" not in known:
        found = _source(
            SourceConfig(path=supervised.path, revision=supervised.revision), cache=cache
        )
        supervised = supervised.model_copy(update={"path": found.path, "revision": found.revision})
    template = config.model.chat_template
    if template and not Path(template).is_file():
        raise ModelError(f"model.chat_template: no file at {Path(template).absolute()}")
    launch = resolve_launch(config.launch)
    precision = config.training.precision
    resolved = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={
                    **_model_name(config.model, model),
                    "chat_template": str(Path(template).absolute()) if template else "",
                }
            ),
            "data": config.data.model_copy(update={"sources": sources}),
            "supervised": supervised,
            "launch": launch,
            "training": config.training.model_copy(
                update={"precision": resolve_precision(precision, launch)}
            ),
        }
    )
    _check_attention(resolved)
    _check_packages(resolved)
    inputs = {"model": model_digest(model), "tokenizer": _tokenizer_digest(model, template)}
    inputs |= data_digests(resolved, known=known) | named
    return Resolved(
        references=references,
        config=resolved,
        model=model,
        inputs=inputs,
        has_template=bool(template) or has_chat_template(model),
    )


def data_digests(config: RunConfig, *, known: Mapping[str, str] = {}) -> dict[str, str]:
    """Digest of every source of a resolved recipe, by its name in a run's inputs.

    Raises:
        DataError: a file is not there.
    """
    sources = {f"data.{source.name}": source for source in config.data.sources}
    if config.supervised.from_source:
        supervised = config.supervised
        sources["data.supervised"] = SourceConfig(
            path=supervised.path, revision=supervised.revision
        )
    return {
        name: known.get(name) or _data_digest(source.path, source.revision)
        for name, source in sources.items()
    }


def cache_dir(config: RunConfig) -> Path:
    """Folder of the caches: as set, or ``cache`` beside the runs."""
    if config.store.cache_dir:
        return Path(config.store.cache_dir).absolute()
    return Path(config.store.runs_dir).absolute().parent / "cache"


def resolve_launch(launch: LaunchConfig) -> LaunchConfig:
    """``auto`` and 0 replaced by what this machine has.

    Raises:
        ConfigError: a device or a number of processes that is not here.
    """
    gpus = len(machine.cuda_capabilities())
    device = launch.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        raise ConfigError("launch.device is cuda, but this machine has no CUDA device")
    if device == "cuda" and launch.processes > gpus:
        raise ConfigError(
            f"launch.processes is {launch.processes}, but this machine has {gpus} CUDA devices"
        )
    strategy = launch.strategy
    if strategy == "auto":
        strategy = "single" if launch.processes == 1 else "ddp"
    threads = launch.threads or max(1, machine.cores() // launch.processes)
    return launch.model_copy(update={"device": device, "strategy": strategy, "threads": threads})


def resolve_precision(precision: str, launch: LaunchConfig) -> str:
    """bf16 where ``auto`` meets a GPU that has it, else fp32.

    Raises:
        ConfigError: bf16 was asked of a GPU without it.
    """
    capable = launch.device == "cuda" and machine.cuda_capabilities()[0] >= _BF16_CAPABILITY
    if precision == "bf16" and launch.device == "cuda" and not capable:
        raise ConfigError("training.precision is bf16, which this GPU does not have: use fp32")
    if precision == "auto":
        return "bf16" if capable else "fp32"
    return precision


def restore_machine(config: RunConfig, stored: RunConfig) -> RunConfig:
    """``config`` with what it leaves open as the run found it when it was created.

    Threads, device and precision change the last bits or more, and a hub data set moves on: a run
    that is taken up again keeps its own.
    """
    launch, training = config.launch, config.training
    update: dict[str, object] = {}
    if launch.device == "auto":
        update["device"] = stored.launch.device
    if launch.strategy == "auto" and launch.processes == stored.launch.processes:
        update["strategy"] = stored.launch.strategy
    if launch.threads == 0:
        update["threads"] = stored.launch.threads
    precision = training.precision
    if precision == "auto":
        precision = stored.training.precision
    sources = [
        source.model_copy(update={"revision": old.revision})
        if (source.path, source.revision) == (old.path, "")
        else source
        for source, old in zip(config.data.sources, stored.data.sources, strict=False)
    ]
    sources += config.data.sources[len(sources) :]
    model = config.model
    if (model.name_or_path, model.revision) == (stored.model.name_or_path, ""):
        model = model.model_copy(update={"revision": stored.model.revision})
    return config.model_copy(
        update={
            "model": model,
            "data": config.data.model_copy(update={"sources": sources}),
            "launch": launch.model_copy(update=update),
            "training": _with_revision(
                training.model_copy(update={"precision": precision}), stored.training
            ),
            "steps": [
                _with_revision(step, old)
                for step, old in zip_longest(config.steps, stored.steps[: len(config.steps)])
            ],
        }
    )


def _with_revision(group: G, stored: G | None) -> G:
    """``group`` with the commit of a hub reference that it leaves open, as the run found it."""
    name, revision = getattr(group, "reference_model", ""), getattr(group, "reference_revision", "")
    if stored is None or not name or revision or name != getattr(stored, "reference_model", ""):
        return group
    found = getattr(stored, "reference_revision", "")
    return group.model_copy(update={"reference_revision": found}) if found else group


def _check_packages(config: RunConfig) -> None:
    wanted: dict[str, str] = {tool: tool for tool in config.tracking.tools}
    if config.model.attention == "flash_attention_2":
        wanted["flash_attn"] = "flash-attn"
    if config.launch.strategy.startswith("deepspeed"):
        wanted["deepspeed"] = "deepspeed"
    for module, package in wanted.items():
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"the recipe wants {package}, which is not installed: pip install {package}, or "
                "the project's extra that brings it"
            )


def _check_attention(config: RunConfig) -> None:
    bf16_on_gpu = config.launch.device == "cuda" and config.training.precision == "bf16"
    if config.model.attention == "flash_attention_2" and not bf16_on_gpu:
        raise ConfigError(
            "model.attention flash_attention_2 works on a CUDA device in bf16, and this run is on "
            f"{config.launch.device} in {config.training.precision}: use sdpa"
        )


def is_path(name: str) -> bool:
    """Whether a name is meant as a path even if nothing is there."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or not _HUB_NAME.fullmatch(name)


def _locate_references(
    config: RunConfig, *, model: Path, cache: Path
) -> tuple[RunConfig, dict[tuple[str, str], ReferenceModel], dict[str, str]]:
    """``config`` with its reference models located, these by name and revision, their digests.

    Raises:
        ModelError: one is not there, or is no model folder.
        ConfigError: one has another vocabulary, and the objective needs log-probs per token.
    """
    found: dict[tuple[str, str], ReferenceModel] = {}
    inputs: dict[str, str] = {}

    def locate(training: TrainingConfig, where: str) -> dict[str, str]:
        """The model's name and revision as they are stored, for a group that names one."""
        given = config.model.model_copy(
            update={
                "name_or_path": training.reference_model,
                "revision": training.reference_revision,
            }
        )
        folder = _model_folder(given, cache=cache, where=f"{where}.reference_model")
        key = _model_name(given, folder)
        found[key["name_or_path"], key["revision"]] = reference = _reference_model(folder, model)
        inputs[f"reference.{where}"] = reference.digest
        if reference.tokenizer:
            inputs[f"reference.{where}.tokenizer"] = reference.tokenizer
        return {"reference_model": key["name_or_path"], "reference_revision": key["revision"]}

    training, steps = config.training, list(config.steps)
    numbers = range(1, len(steps) + 1)
    inherited = [not steps[number - 1].reference_model for number in numbers]  # type: ignore[attr-defined]
    users = [training, *(config.training_of(n) for n in numbers if inherited[n - 1])]
    update: dict[str, object] = {}
    if any(effective_reference(user) == "model" for user in users):
        update["training"] = training.model_copy(update=locate(training, "training"))
    for number in numbers:
        own = config.training_of(number)
        if effective_reference(own) == "model" and not inherited[number - 1]:
            revision = steps[number - 1].reference_revision or ""  # type: ignore[attr-defined]
            own = own.model_copy(update={"reference_revision": revision})
            stored = locate(own, f"steps.{number - 1}")
            steps[number - 1] = steps[number - 1].model_copy(update=stored)  # type: ignore[attr-defined]
    located = config.model_copy(update=update | {"steps": steps})
    for where, user in located.trainings.items():
        _check_vocabulary(user, found, where)
    return located, found, inputs


def _reference_model(folder: Path, model: Path) -> ReferenceModel:
    same = vocabulary_digest(folder) == vocabulary_digest(model)
    return ReferenceModel(
        folder=folder,
        digest=model_digest(folder),
        tokenizer="" if same else tokenizer_digest(folder),
    )


def _check_vocabulary(
    training: TrainingConfig, references: Mapping[tuple[str, str], ReferenceModel], where: str
) -> None:
    reference = references.get((training.reference_model, training.reference_revision))
    if effective_reference(training) != "model" or reference is None or not reference.tokenizer:
        return
    if is_length_normalised(training.objective):
        raise ConfigError(
            f"{where}.reference_model: {training.reference_model} has another vocabulary than the "
            f"run's model, so its tokens are not the policy's, and objective {training.objective} "
            "divides by their number: use an objective on summed log-probs (dpo, ipo_sum), or a "
            "reference with the same vocabulary"
        )


def _model_folder(given: ModelConfig, *, cache: Path, where: str = "model.name_or_path") -> Path:
    name = given.name_or_path
    if not name:
        raise ModelError(f"{where} is empty: give a model folder or a hub name")
    if name.startswith("demo:"):
        return demo.materialise(name, cache / "demo")
    local = Path(name).expanduser()
    if local.is_dir():
        _check_model_folder(local)
        return Path(os.path.normpath(local.absolute()))
    if is_path(name):
        raise ModelError(f"{where}: no folder at {local.absolute()}")
    return _hub_model(name, revision=given.revision, code=given.trust_remote_code, where=where)


def _model_name(given: ModelConfig, folder: Path) -> dict[str, str]:
    """A folder by its path, a hub model by its name and commit."""
    if given.name_or_path.startswith("demo:") or Path(given.name_or_path).expanduser().is_dir():
        return {"name_or_path": str(folder), "revision": ""}
    return {"name_or_path": given.name_or_path, "revision": folder.name}


def _check_model_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder.absolute()} is not a model folder: it has no config.json")
    if not (folder / "tokenizer.json").is_file() and not list(folder.glob("tokenizer*")):
        raise ModelError(
            f"{folder.absolute()} has no tokenizer (tokenizer.json): save it beside the model with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )


def _hub_model(name: str, *, revision: str, code: bool, where: str) -> Path:
    # huggingface_hub takes half a second and most runs use local folders.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [*_MODEL_FILES, "*.py"] if code else _MODEL_FILES
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{where}: {name} is not a local folder ({Path(name).absolute()}), not in "
            "the local hub cache, and the hub cannot be reached"
        ) from error
    except Exception as error:  # the hub's HTTP library has errors of its own
        raise ModelError(f"{where}: {name}: not to be had: {error}") from error
    _check_model_folder(folder)
    return folder


def _source(source: SourceConfig, *, cache: Path) -> SourceConfig:
    """``source`` with a name, an absolute path or a hub name with its commit."""
    if not source.path:
        raise DataError(f"data source `{source.name or '?'}` has no path: name a file or data set")
    name = source.name or default_name(source.path.removeprefix("demo:"))
    if source.path.startswith("demo:"):
        made = demo.materialise(source.path, cache / "demo")
        return source.model_copy(update={"name": name, "path": str(made)})
    local = Path(source.path).expanduser()
    is_data_file = default_name(source.path) != local.name
    if local.exists() or is_path(source.path) or is_data_file:
        path = os.path.normpath(local.absolute())
        return source.model_copy(update={"name": name, "path": path})
    commit = _hub_data_commit(source.path, source.revision)
    return source.model_copy(update={"name": name, "revision": commit})


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
            f"and not to be had from the hub ({type(error).__name__})"
        ) from error
    return commit or revision


def _check_sources(sources: list[SourceConfig]) -> None:
    if not sources:
        raise DataError("data.sources is empty: a run needs preference data")
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two data sources are named `{name}`: give each a name of its own "
                "(data.sources[].name)"
            )


def _tokenizer_digest(model: Path, template: str) -> str:
    digest = tokenizer_digest(model)
    return digest_of([digest, file_digest(Path(template))]) if template else digest


def _data_digest(path: str, revision: str) -> str:
    local = Path(path)
    if local.is_file():
        return file_digest(local)
    if local.is_dir():
        return digest_of(folder_digests(local))
    if os.path.isabs(path):  # noqa: PTH117 - hub names are not paths
        raise DataError(f"no data at {path}{_similar(local)}")
    return digest_of([path, revision])


def _similar(path: Path) -> str:
    import difflib

    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
    return f": did you mean {near[0]}?" if near else ""
