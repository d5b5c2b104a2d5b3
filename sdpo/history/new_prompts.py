"""Find prompts that no step of a run has answered, and say how pairs are made of the answers.

A schedule that retrains from a file of prompts draws each prompt once: what an earlier round of the
chain has answered is not new, and a prompt by which models are judged is never answered.
"""

import tempfile
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from sdpo.config import RunConfig, SourceConfig
from sdpo.config.generating import GenerateConfig
from sdpo.config.load import make_config
from sdpo.data.prompt_file import prompts_as_pairs
from sdpo.data.readers import default_name
from sdpo.data.schema import Format
from sdpo.errors import ConfigError
from sdpo.store.plan_file import read_plan
from sdpo.store.run_folder import RunFolder

_OF_A_STEP = {"prompts_of": "", "rounds": 1, "share": 0.0, "again": False}
"""A further step is one round, a step of its own, of prompts that are new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRound:
    """A further step is to be made of answers to the ``prompts`` of a file or data set.

    ``settings``: ``key=value`` of the source's ``generate``, over those of the recipe's last
    generated source, where it has one.
    """

    prompts: str
    settings: tuple[str, ...] = ()


def new_round(prompts: str, settings: Sequence[str]) -> NewRound | None:
    """Return the round that is asked for by these words; None where no prompts are given.

    Raises:
        ConfigError: there are settings of a round without prompts.
    """
    if not prompts.strip():
        if settings:
            raise ConfigError(
                f"{', '.join(settings)} is of a round, which has prompts: name their file "
                "(--prompts)"
            )
        return None
    return NewRound(prompts=prompts.strip(), settings=tuple(settings))


def round_of(config: RunConfig, made: NewRound) -> SourceConfig:
    """Return the generated source that a recipe gets for a further step.

    Raises:
        ConfigError: its settings cannot be; names them.
    """
    before = [source.generate for source in config.data.generated][-1:]
    start = (before or [GenerateConfig()])[0].model_dump()
    for key in ("prompts_revision", "prompts_split", "prompts_subset"):
        start[key] = GenerateConfig.model_fields[key].default
    for text in made.settings:
        key = text.partition("=")[0].strip()
        if key.split(".")[0] in (*_OF_A_STEP, "prompts"):
            raise ConfigError(
                f"--generate {text}: a further step is one round of the new prompts of its file, "
                f"so {key} is not to be set"
            )
    names = {source.name for source in config.data.sources}
    name = untaken(default_name(made.prompts), names)
    source = {"name": name, "generate": start | _OF_A_STEP | {"prompts": made.prompts}}
    values = config.model_dump()
    at = len(values["data"]["sources"])
    values["data"]["sources"].append(source)
    lines = [f"data.sources.{at}.generate.{text.strip()}" for text in made.settings]
    try:
        return make_config(values, overrides=lines).data.sources[at]
    except ConfigError as error:
        hint = (
            ""
            if before
            else (
                ". The recipe has no rounds whose settings could be taken: give them, as "
                "--generate judge.rule=asks_back --generate n=8"
            )
        )
        raise ConfigError(f"{error}{hint}") from error


def untaken(base: str, taken: Set[str]) -> str:
    """Return a name that is not taken: ``base``, or with a number behind it."""
    number = 1
    while (name := base if number == 1 else f"{base}-{number}") in taken:
        number += 1
    return name


def find_new_prompts(
    source: SourceConfig, origin: RunFolder, *, default_format: Format
) -> frozenset[str]:
    """Return the keys of the prompts of a generated source that ``origin`` has not answered.

    Prompts that it has reserved are left out.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """
    plan = pq.read_table(origin.plan, columns=["prompt_key", "step"]).to_pydict()
    reserved = {key for key, step in zip(plan["prompt_key"], plan["step"], strict=True) if not step}
    settings = source.generate
    with tempfile.TemporaryDirectory(prefix="sdpo-") as scratch:
        prepared = prompts_as_pairs(
            SourceConfig(
                path=settings.prompts,
                split=settings.prompts_split,
                subset=settings.prompts_subset,
                revision=settings.prompts_revision,
            ),
            column=settings.prompt_column,
            name=source.name,
            setting="generate.prompt_column",
            default_format=default_format,
            out=Path(scratch),
        )
        keys = pq.read_table(prepared.path, columns=["prompt_key"])["prompt_key"].to_pylist()
    steps = [step.step for step in read_plan(origin).steps]
    return frozenset(keys) - reserved - drawn_for(origin, steps)


def drawn_for(run: RunFolder, steps: Sequence[int]) -> set[str]:
    """Return the keys of the prompts that were drawn for rounds among these steps of a run.

    Those are among them that could not be answered, since they are too long, say.
    """
    found: set[str] = set()
    for step in steps:
        path = run.step(step) / "prompts.parquet"
        if path.is_file():
            found.update(pq.read_table(path, columns=["prompt_key"])["prompt_key"].to_pylist())
    return found
