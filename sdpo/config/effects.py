"""Settings that were given and that nothing reads: each is a warning with why."""

from sdpo.config.measuring import ProbeConfig
from sdpo.config.reference_choice import references_without_effect
from sdpo.config.run import RunConfig
from sdpo.config.supervised import SupervisedConfig
from sdpo.config.training import TrainingConfig
from sdpo.objectives import OBJECTIVE_SETTINGS, OBJECTIVES


def unread_settings(training: TrainingConfig) -> dict[str, str]:
    """Settings of a step that nothing reads because of its other settings, each with why."""
    read = OBJECTIVES[training.objective].settings
    why = {
        name: f"on objective {training.objective}"
        for name in OBJECTIVE_SETTINGS
        if name not in read
    }
    if training.optimizer != "adamw":
        why |= dict.fromkeys(("adam_beta1", "adam_beta2"), f"on optimizer {training.optimizer}")
    if not training.lora_r:
        lora = [name for name in TrainingConfig.model_fields if name.startswith("lora_")]
        why |= {name: "because lora_r is 0" for name in lora if name != "lora_r"}
    if not (training.checkpoint_minutes or training.checkpoint_every):
        why["checkpoints_kept"] = "because no resume states are asked for"
    return why


def settings_without_effect(config: RunConfig) -> list[str]:
    """Settings that were given and that nothing will read, each with why."""
    return [
        *_of_training(config),
        *_of_probe(config.probe),
        *references_without_effect(config.trainings),
        *_of_supervised(config.supervised),
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
            lines.append(f"training.{name} has no effect {why}")
    for index, (own, step) in enumerate(both):
        for name in sorted(own.keys() & step.keys()):
            lines.append(f"steps.{index}.{name} has no effect {step[name]}")
    return lines


def _of_probe(probe: ProbeConfig) -> list[str]:
    if probe.kl_prompts:
        return []
    return [
        f"probe.{name} has no effect: probe.kl_prompts is 0"
        for name in ("kl_samples", "kl_tokens", "kl_paper_mode")
        if getattr(probe, name) != ProbeConfig.model_fields[name].default
    ]


def _of_supervised(supervised: SupervisedConfig) -> list[str]:
    default = SupervisedConfig()
    if not supervised.enabled:
        differs = supervised != default
        return ["`supervised` has no effect: supervised.enabled is false"] if differs else []
    if supervised.from_source:
        return []
    return [
        f"supervised.{name} has no effect: supervised.examples is `chosen`"
        for name in ("revision", "subset", "split", "format", "columns")
        if getattr(supervised, name) != getattr(default, name)
    ]
