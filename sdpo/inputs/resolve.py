"""Resolve what the names in a recipe stand for: folders, hub commits, this machine's devices.

The resolved configuration is what a run stores. No torch is needed for it: models are looked up
as files (:mod:`sdpo.inputs.locate`, :mod:`sdpo.inputs.named_models`), devices through the driver.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from sdpo.config import EvaluationConfig, Group, RunConfig, SourceConfig
from sdpo.config.impossible import impossible_paging
from sdpo.config.packages import missing_packages, optimizers
from sdpo.errors import ConfigError, DataError
from sdpo.identity.canonical import digest_of
from sdpo.identity.model_digest import model_digest
from sdpo.identity.tokenizer_digest import given_template, has_chat_template, tokenizer_digest
from sdpo.inputs.devices import resolve_launch, resolve_precision
from sdpo.inputs.judges import LocatedJudge, locate_judge, located_judges
from sdpo.inputs.locate import (
    data_digest,
    locate_source,
    model_folder,
    model_name,
    prompts_path,
    with_prompts,
)
from sdpo.inputs.named_models import locate_references
from sdpo.inputs.plugins import named_plugins
from sdpo.model_names import NamedModel
from sdpo.system.files import file_digest
from sdpo.system.nearby import did_you_mean
from sdpo.system.permissions import TASK_FOLDERS, may_use_tasks_of

G = TypeVar("G", bound=Group)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A resolved recipe has everything looked up.

    ``config`` has absolute paths and literal settings. ``inputs`` are the content digests by which
    the run knows its inputs again: ``model``, ``tokenizer`` and ``data.<source>``;
    ``prompts.<source>`` and ``judge.<source>`` of generated sources; ``reference.<where>`` for
    references, ``plugin.<kind>.<name>`` for plug-ins that the recipe names. ``references`` are the
    reference models, by (``reference_model``, ``reference_revision``) of ``config``. ``judge`` is
    that of the win rates; None where there are none, or it was not looked up.
    """

    config: RunConfig
    model: Path
    inputs: Mapping[str, str]
    has_template: bool
    references: Mapping[tuple[str, str], NamedModel] = field(default_factory=dict)
    judge: LocatedJudge | None = None


def resolve(config: RunConfig, *, known: Mapping[str, str] = {}) -> Resolved:
    """Look up everything that ``config`` names.

    ``known`` are digests, by the names of ``inputs``, of data that is not looked up: a run with an
    origin has its pairs from there.

    Raises:
        ModelError, DataError, PluginError, ConfigError: something is not there, or not possible
            here.
    """
    cache = cache_dir(config)
    model = model_folder(config.model, cache=cache)
    config, references, named = locate_references(config, model=model, cache=cache)
    sources = [
        source
        if {f"data.{source.name}", f"prompts.{source.name}"} & known.keys()
        else with_prompts(source, cache=cache)
        if source.generate.enabled
        else locate_source(source, cache=cache)
        for source in config.data.sources
    ]
    _check_sources(sources)
    sources, judges = located_judges(sources, cache=cache)
    supervised = config.supervised
    if supervised.from_source and "data.supervised" not in known:
        found = locate_source(
            SourceConfig(path=supervised.path, revision=supervised.revision), cache=cache
        )
        supervised = supervised.model_copy(update={"path": found.path, "revision": found.revision})
    template = _template_of(config.model.chat_template, model)
    launch = resolve_launch(config.launch)
    precision = config.training.precision
    resolved = config.model_copy(
        update={
            "model": config.model.model_copy(
                update={
                    **model_name(config.model, model),
                    "chat_template": template,
                }
            ),
            "data": config.data.model_copy(update={"sources": sources}),
            "supervised": supervised,
            "launch": launch,
            "evaluation": _located(config.evaluation),
            "training": config.training.model_copy(
                update={"precision": resolve_precision(precision, launch)}
            ),
        }
    )
    _check_attention(resolved)
    _check_optimizers(resolved)
    _check_packages(resolved)
    _check_evaluation(resolved)
    judge = _judge_of(resolved, cache)
    if judge:
        win_rate = resolved.evaluation.win_rate.model_copy(update={"judge": judge.config})
        evaluation = resolved.evaluation.model_copy(update={"win_rate": win_rate})
        resolved = resolved.model_copy(update={"evaluation": evaluation})
    held = config.model.base_precision
    digest = model_digest(model, precision=held)
    inputs = {"model": digest, "tokenizer": _tokenizer_digest(model, template)}
    inputs |= data_digests(resolved, known=known) | named | judges
    inputs |= {name: plugin.digest() for name, plugin in named_plugins(resolved).items()}
    return Resolved(
        references=references,
        config=resolved,
        model=model,
        inputs=inputs,
        has_template=bool(template) or has_chat_template(model),
        judge=judge,
    )


def data_digests(config: RunConfig, *, known: Mapping[str, str] = {}) -> dict[str, str]:
    """Return the digest of every source of a resolved recipe, by its name in a run's inputs.

    Raises:
        DataError: a file is not there.
    """
    sources = {f"data.{source.name}": source for source in config.data.given}
    sources |= {
        f"prompts.{source.name}": SourceConfig(
            path=source.generate.prompts, revision=source.generate.prompts_revision
        )
        for source in config.data.generated
        if source.generate.prompts
    }
    if config.supervised.from_source:
        supervised = config.supervised
        sources["data.supervised"] = SourceConfig(
            path=supervised.path, revision=supervised.revision
        )
    return {
        name: known.get(name) or data_digest(source.path, source.revision)
        for name, source in sources.items()
    }


def cache_dir(config: RunConfig) -> Path:
    """Return the folder of the caches: as set, or ``cache`` beside the runs."""
    if config.store.cache_dir:
        return Path(config.store.cache_dir).absolute()
    return Path(config.store.runs_dir).absolute().parent / "cache"


def restore_machine(config: RunConfig, stored: RunConfig) -> RunConfig:
    """Return ``config`` with what it leaves open set as it was when the run was created.

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
    """Return ``group`` with the commit of an unpinned hub reference, as the run found it."""
    name, revision = getattr(group, "reference_model", ""), getattr(group, "reference_revision", "")
    if stored is None or not name or revision or name != getattr(stored, "reference_model", ""):
        return group
    found = getattr(stored, "reference_revision", "")
    return group.model_copy(update={"reference_revision": found}) if found else group


def _check_packages(config: RunConfig) -> None:
    for missing in missing_packages(config):
        raise ConfigError(f"the recipe wants {missing}")


def _check_optimizers(config: RunConfig) -> None:
    for optimizer in sorted(optimizers(config)):
        if problem := impossible_paging(optimizer, config.launch):
            raise ConfigError(problem)


def _check_evaluation(config: RunConfig) -> None:
    """Refuse task files that the owner of this machine has not permitted: they run code."""
    given = config.evaluation.task_files
    if not config.evaluation.suites or not given:
        return
    folder = Path(given)
    if not folder.is_dir():
        raise ConfigError(
            f"evaluation.task_files: there is no folder at {folder.absolute()}"
            f"{did_you_mean(folder)}"
        )
    if not may_use_tasks_of(folder):
        raise ConfigError(
            f"evaluation.task_files: {folder.absolute()}: task files run code, so whoever owns "
            "this machine has to permit the folder: start the worker, or this command, with "
            f"{TASK_FOLDERS}={folder.absolute()} in its environment"
        )


def _judge_of(config: RunConfig, cache: Path) -> LocatedJudge | None:
    win_rate = config.evaluation.win_rate
    if not win_rate.is_on:
        return None
    return locate_judge(win_rate.judge, where="evaluation.win_rate.judge", cache=cache)


def _check_attention(config: RunConfig) -> None:
    bf16_on_gpu = config.launch.device == "cuda" and config.training.precision == "bf16"
    if config.model.attention == "flash_attention_2" and not bf16_on_gpu:
        raise ConfigError(
            "model.attention flash_attention_2 works on a CUDA device in bf16, and this run is on "
            f"{config.launch.device} in {config.training.precision}: use sdpa"
        )


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


def _located(evaluation: EvaluationConfig) -> EvaluationConfig:
    """Return the settings with absolute paths of own task files and of a file of prompts."""
    update: dict[str, object] = {}
    if evaluation.task_files:
        update["task_files"] = str(Path(evaluation.task_files).absolute())
    if evaluation.win_rate.is_on and evaluation.win_rate.prompt_file:
        path = prompts_path(evaluation.win_rate)
        update["win_rate"] = evaluation.win_rate.model_copy(update={"prompt_file": path})
    return evaluation.model_copy(update=update)


def _template_of(given: str, model: Path) -> str:
    """Return a template file's absolute path, or the name of one of the tokenizer's own."""
    if not given:
        return ""
    if Path(given).is_file():
        return str(Path(given).absolute())
    given_template(model, given)
    return given


def _tokenizer_digest(model: Path, template: str) -> str:
    digest = tokenizer_digest(model)
    if not template:
        return digest
    is_file = Path(template).is_absolute()
    return digest_of([digest, file_digest(Path(template)) if is_file else {"named": template}])
