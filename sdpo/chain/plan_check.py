"""Refuse, before anything is trained or measured, what the plan would make fail later."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from partitions import Plan
from sdpo.chain.context import Context
from sdpo.chain.examples_left import examples_left
from sdpo.chain.features import MODEL_FEATURES, needed_features
from sdpo.chain.node import Errand, Expansion, Part
from sdpo.chain.plan_pairs import known_features, pairs_of, partition_settings, plan_of
from sdpo.chain.planned_rounds import with_rounds
from sdpo.chain.tokens import tokens_path
from sdpo.config import TrainingConfig
from sdpo.data.parquet_columns import Columns
from sdpo.errors import ConfigError
from sdpo.identity.model_digest import base_entries
from sdpo.objectives import OBJECTIVES
from sdpo.processes.stage_specs import ModulesSpec, ObjectivesSpec
from sdpo.system.words import counted
from sdpo.tokens.lengths import ends_of_lengths
from sdpo.tokens.token_file import SupervisedTokenFile, TokenFile


def check(context: Context) -> Expansion:
    """Return a check that refuses what would fail later, before anything is trained or measured.

    It refuses what the partition refuses, a supervised stage that has nothing to train on, and
    adapters that the model's modules do not take.
    """
    return checked(context, lambda: foresee_plan(context))


def foresee_plan(context: Context) -> Plan:
    """Return the plan's steps, known before anything is trained or measured, unlike their pairs.

    Raises:
        PartitionError, ConfigError: as the partition; the order of steps plays no part in it.
        DataError: the supervised stage has nothing to train on.
    """
    settings, usable = partition_settings(context), Columns(context.run.usable)
    needed = needed_features(settings)
    features = known_features(context, usable)
    # A measurement moves pairs between steps and steps among themselves, never their number.
    features |= {name: np.zeros(usable.rows) for name in needed & MODEL_FEATURES}
    pairs, _ = pairs_of(context, usable, features)
    plan = with_rounds(context, plan_of(pairs, settings))
    check_steps(context, plan)
    examples_left(context)
    return plan


def checked(context: Context, foresee: Callable[[], Plan]) -> Expansion:
    """Return a look at the plan that ``foresee`` gives, then a trial of objectives and modules."""

    def parts() -> list[Part]:
        plan = foresee()
        return [
            Errand(do=lambda: _try_objectives(context, len(plan.steps))),
            Errand(do=lambda: _try_modules(context, plan)),
        ]

    return Expansion(title="check", expand=parts)


def check_steps(context: Context, plan: Plan) -> None:
    """Refuse settings of steps that the plan does not have, and adapters of unknown modules.

    Raises:
        ConfigError: names them.
    """
    steps, given = len(plan.steps), len(context.config.steps)
    if given > steps:
        raise ConfigError(
            f"`steps` has settings for {counted(given, 'step')}, but the partition makes {steps}"
        )
    for step, training in _named_modules(context, plan).items():
        _check_modules(context, step, training.lora_target_modules)


def _named_modules(context: Context, plan: Plan) -> dict[int, TrainingConfig]:
    """Return the settings of steps whose adapters are for modules that the recipe names."""
    return {
        step.step: training
        for step in plan.steps
        if (training := context.config.training_of(step.step)).lora_r
        and training.lora_target_modules != ["all-linear"]
    }


def _check_modules(context: Context, step: int, names: Sequence[str]) -> None:
    modules = [e.name.removesuffix(".weight") for e in base_entries(context.resolved.model)]
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module in modules):
            raise ConfigError(
                f"training.lora_target_modules of step {step}: no module of the model is named "
                f"`{name}`; there are {', '.join(sorted({m.split('.')[-1] for m in modules}))}"
            )


def _try_modules(context: Context, plan: Plan) -> None:
    """Try what untrained steps ask of the model's modules, and whether the launch can compute it.

    The modules take no memory for it.

    Raises:
        ConfigError: one of them cannot have an adapter, or not be computed under ZeRO-3.
        ModelError: there are no routers, whose loss a step wants. Both name the step.
    """
    every = {step.step: context.config.training_of(step.step) for step in plan.steps}
    trainings = {
        step: training
        for step, training in every.items()
        if (training.lora_r or training.router_aux_loss)
        and context.run.read_record(f"step-{step}") is None
    }
    if trainings or context.config.launch.shares_weights:
        context.stage(
            modules_spec(context, context.resolved.model, tokens_path(context), trainings)
        )


def modules_spec(
    context: Context, source: Path, tokens: Path, trainings: dict[int, TrainingConfig]
) -> ModulesSpec:
    """Return what the stage is told that tries the modules of the model in ``source``.

    ``tokens``: the pairs as its tokenizer cuts them.
    """
    from_source = context.config.supervised.from_source
    examples = tokens_path(context, "supervised") if from_source else None
    return ModulesSpec(
        name="modules",
        run=context.run.path,
        model=context.config.model,
        launch=context.config.launch,
        source=source,
        trainings=trainings,
        lengths=ends_of_lengths(
            TokenFile.open(tokens), SupervisedTokenFile.open(examples) if examples else None
        ),
    )


def _try_objectives(context: Context, steps: int) -> None:
    """Compute once the plug-in objectives of steps that are not trained yet.

    Raises:
        PluginError: one cannot be imported, or is no objective; names the step.
    """
    trainings = {
        step: training
        for step in range(1, steps + 1)
        if (training := context.config.training_of(step)).objective not in OBJECTIVES
        and context.run.read_record(f"step-{step}") is None
    }
    if trainings:
        context.stage(
            ObjectivesSpec(
                name="objectives",
                run=context.run.path,
                model=context.config.model,
                launch=context.config.launch,
                trainings=trainings,
            )
        )
