"""Find settings of generated sources that are refused from the recipe alone."""

from collections.abc import Iterator

from sdpo.config.data import DataConfig, SourceConfig
from sdpo.config.generating import GenerateConfig
from sdpo.config.partition import PartitionConfig

_OWN = ("name", "generate")


def impossible_rounds(data: DataConfig, partition: PartitionConfig) -> list[str]:
    """Name generated sources that cannot be made, each with what to do."""
    problems = [
        f"data.sources.{index}.{problem}"
        for index, source in enumerate(data.sources)
        for problem in _of_source(data, source)
    ]
    generated = {source.name for source in data.generated}
    if named := sorted(generated & {name for group in partition.groups for name in group}):
        problems.append(
            f"partition.groups names {', '.join(named)}, whose pairs are not there when the data "
            "is partitioned: its steps follow those of the other sources. Take it out of the groups"
        )
    if data.generated and not data.given:
        problems.append(
            "all data.sources are generated, and models are measured on reserved pairs of data: "
            "add a source with a path (with `train: false`, if no step is to have its pairs)"
        )
    if data.given and not any(source.train for source in data.given) and not data.generated:
        problems.append("no source has `train`: there is nothing to train on. Leave it on for one")
    return problems


def _of_source(data: DataConfig, source: SourceConfig) -> Iterator[str]:
    settings = source.generate
    if not settings.enabled:
        if settings != GenerateConfig():
            yield "generate names no prompts: set `prompts` (a file) or `prompts_of` (a source)"
        return
    fields = SourceConfig.model_fields
    if others := [
        name
        for name in fields
        if name not in _OWN and getattr(source, name) != fields[name].default
    ]:
        yield (
            f"{others[0]} is of a source that is read, and this one is generated: leave out "
            f"`{others[0]}`, or `generate`"
        )
    if not source.name:
        yield "name is empty: a generated source has no file that would name it. Set it"
    yield from _of_server(settings)
    yield from _of_prompts(data, settings)
    yield from _of_steps(data, source)


def _of_server(settings: GenerateConfig) -> Iterator[str]:
    if settings.engine != "openai":
        return
    if not settings.serve:
        yield (
            "generate.engine `openai` needs the command of a server (generate.serve), such as "
            "[vllm, serve, '{model}', --port, '{port}']"
        )
        return
    for place, what in (("{model}", "the folder of the model"), ("{port}", "the port")):
        if not any(place in argument for argument in settings.serve):
            yield f"generate.serve names no {place}, {what}: put it where the command has it"


def _of_prompts(data: DataConfig, settings: GenerateConfig) -> Iterator[str]:
    names = [source.name for source in data.given]
    if settings.prompts and settings.prompts_of:
        yield "generate has `prompts` and `prompts_of`: leave out one of them"
    elif settings.prompts_of and settings.prompts_of not in names:
        yield (
            f"generate.prompts_of `{settings.prompts_of}` is no source with pairs of this recipe; "
            f"by their `name` there are {', '.join(filter(None, names)) or 'none'}"
        )
    if settings.rounds > 1 and not settings.per_round and not settings.again:
        yield (
            f"generate.rounds {settings.rounds} with per_round 0: the first round takes all "
            "prompts, and none is left for the next. Set per_round, or `again: true`"
        )
    if settings.max_new_tokens >= data.max_length:
        yield (
            f"generate.max_new_tokens ({settings.max_new_tokens}) leaves no room for a prompt "
            f"within data.max_length ({data.max_length}): lower the former or raise the latter"
        )


def _of_steps(data: DataConfig, source: SourceConfig) -> Iterator[str]:
    judge = source.generate.judge
    if judge.kind and judge.implicit:
        yield f"generate.judge has `{judge.kind}` and `implicit`: leave out one of them"
    if not judge.kind and not judge.implicit:
        yield (
            "generate.judge names none: set `rule`, `reward_model` or `endpoint`, or "
            "`implicit: true`"
        )
    has_data = any(each.train for each in data.given)
    if source.generate.share and not has_data:
        yield (
            "generate.share: no source with pairs has `train`, so there is no step of the data to "
            "join: leave it out"
        )
    is_first = source is data.generated[0] and not has_data
    if judge.implicit and is_first:
        yield (
            "generate.judge.implicit: the first round is step 1, and the model before it is S "
            "itself, whose reward over S is 0 for every sample. Put a step before it (a source "
            "with `train`), or name a `rule`"
        )
