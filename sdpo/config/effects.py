"""Find settings that were given and that nothing reads: each is a warning with why."""

from sdpo.config.annotations import OfFormula, marked, unread
from sdpo.config.data import DataConfig
from sdpo.config.group import Group
from sdpo.config.judging import WinRateConfig
from sdpo.config.reference_choice import references_without_effect
from sdpo.config.run import RunConfig
from sdpo.config.supervised import SupervisedConfig
from sdpo.config.training import TrainingConfig
from sdpo.objectives import objective_facts


def unread_settings(training: TrainingConfig) -> dict[str, str]:
    """Return a step's settings that nothing reads because of its other settings, each with why."""
    read = objective_facts(training.objective).settings
    of_others = [name for name in marked(TrainingConfig, OfFormula) if name not in read]
    why = dict.fromkeys(of_others, f" on objective {training.objective}")
    return why | unread(training)


def settings_without_effect(config: RunConfig) -> list[str]:
    """Return settings that were given and that nothing will read, each with why."""
    return [
        *_of_weights(config.data),
        *_of_training(config),
        *_of_processes(config),
        *_of_groups(config),
        *_of_generated(config.data),
        *references_without_effect(config.trainings),
        *_of_supervised(config.supervised),
        *_of_win_rate(config.evaluation.win_rate),
    ]


def _of_weights(data: DataConfig) -> list[str]:
    """A mixture is of two sources at least."""
    weighted = [index for index, source in enumerate(data.sources) if source.weight]
    if len(weighted) != 1:
        return []
    return [
        f"data.sources.{weighted[0]}.weight has no effect: no other source has a weight, and a "
        "mixture is of the sources that have one"
    ]


def _of_training(config: RunConfig) -> list[str]:
    """A setting of ``training`` has an effect where a step that takes it over reads it."""
    lines: list[str] = []
    training, steps = config.training, config.steps
    overrides = [step.model_dump(exclude_none=True) for step in steps]  # type: ignore[attr-defined]
    unread = [unread_settings(config.training_of(index + 1)) for index in range(len(steps))]
    both = list(zip(overrides, unread, strict=True))
    for name, why in unread_settings(training).items():
        given = getattr(training, name) != TrainingConfig.model_fields[name].default
        read_later = any(name not in own and name not in step for own, step in both)
        if given and not read_later:
            lines.append(f"training.{name} has no effect{why}")
    for index, (own, step) in enumerate(both):
        for name in sorted(own.keys() & step.keys()):
            lines.append(f"steps.{index}.{name} has no effect{step[name]}")
    return lines


def _of_processes(config: RunConfig) -> list[str]:
    """A process trains where an optimizer step has a pair for it."""
    processes = config.launch.processes
    lines: dict[int, str] = {}
    for where, training in config.trainings.items():
        pairs = training.batch_size
        if pairs < processes:
            lines.setdefault(
                pairs,
                f"launch.processes {processes} trains no faster than {pairs}: an optimizer step "
                f"has {where}.batch_size ({pairs}) pairs, and processes without a pair wait for "
                "those that have one",
            )
    return list(lines.values())


def _of_groups(config: RunConfig) -> list[str]:
    """Of every group whose settings are read by themselves."""
    groups = {name: getattr(config, name) for name in RunConfig.model_fields}
    return [
        line
        for name, group in groups.items()
        if isinstance(group, Group) and name not in ("training", "supervised")
        for line in _given_unread(group, name)
    ]


def _of_generated(data: DataConfig) -> list[str]:
    """Of every source that is generated."""
    return [
        line
        for index, source in enumerate(data.sources)
        if source.generate.enabled
        for where, group in (
            ("generate", source.generate),
            ("generate.judge", source.generate.judge),
        )
        for line in _given_unread(group, f"data.sources.{index}.{where}")
    ]


def _given_unread(group: Group, where: str) -> list[str]:
    fields = type(group).model_fields
    return [
        f"{where}.{name} has no effect{why}"
        for name, why in unread(group).items()
        if getattr(group, name) != fields[name].default
    ]


def _of_win_rate(win_rate: WinRateConfig) -> list[str]:
    where = "evaluation.win_rate"
    if not win_rate.is_on:
        differs = win_rate != WinRateConfig()
        return [f"{where} has no effect: its judge is not named"] if differs else []
    return [*_given_unread(win_rate, where), *_given_unread(win_rate.judge, f"{where}.judge")]


def _of_supervised(supervised: SupervisedConfig) -> list[str]:
    default = SupervisedConfig()
    if not supervised.enabled:
        differs = supervised != default
        return ["`supervised` has no effect: supervised.enabled is false"] if differs else []
    return _given_unread(supervised, "supervised")
