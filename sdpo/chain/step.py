"""A step: its models, its identity, its guide, its training."""

from typing import Any

from sdpo.chain.context import Context
from sdpo.chain.kl import measure_kl
from sdpo.chain.probes import find_probe, measure_again, record_probe
from sdpo.chain.score_reference import scored_reference
from sdpo.chain.start_stage import train_node
from sdpo.chain.step_models import StepModels, guided_training, reference_of, target_of
from sdpo.chain.tokens import tokens_path
from sdpo.chain.views import write_gamma
from sdpo.config import TrainingConfig
from sdpo.config.reference_choice import effective_reference
from sdpo.data.parquet_columns import rows_of_steps
from sdpo.identity.payloads import rows_digest, step_identity
from sdpo.inputs.resolve import resolve_precision
from sdpo.plugins.recorded import inputs_of
from sdpo.store.run_folder import Record
from sdpo.tokens.token_file import TokenFile

_ROLES = ("reference", "target")


def align_step(context: Context, step: int) -> Record:
    """Step ``step``: D_step is the data, M_{step-1} reference and initial target unless the recipe
    says otherwise; M_step comes out.

    One stage measures its input if nobody has, trains, publishes and measures M_step. Measurements
    that are missing although the step is complete are made again by a stage of their own. A guide
    is trained before, and a reference that is not the target scored before, each by its own stage.
    """
    training = resolved_training(context, step)
    if effective_reference(training) == "guided":
        _train_guide(context, step, guided_training(training))
    models = step_models(context, step, training)
    target = models.target
    identity, inputs = _step_identity(context, step, training, models)
    node = f"step-{step}"
    if context.done(node, identity) is None:
        reference = scored_reference(context, step, training, models)
        start = int(target.name.removeprefix("M_"))
        measure_input = start == step - 1 and find_probe(context, start)[0] is None
        train_node(
            context,
            node=node,
            step=step,
            task="preference",
            training=training,
            start=target,
            reference=reference,
            models=models.said(training, tokens=reference.tokens if reference else None),
            measure_input=measure_input,
            measure_output=True,
            identity=identity,
            inputs=inputs,
        )
        if measure_input:
            record_probe(context, start)
        record_probe(context, step)
    for number in (step - 1, step):
        found, reason = find_probe(context, number)
        if found is None:
            measure_again(context, number, training, reason)
    record = context.run.read_record(node)
    assert record is not None, "the stage wrote its record"
    context.settle(node, record)
    write_gamma(context, step)
    measure_kl(context, step, training)
    return record


def resolved_training(context: Context, step: int) -> TrainingConfig:
    """The settings of a step, its precision resolved."""
    config = context.config
    training = config.training_of(step)
    precision = resolve_precision(training.precision, config.launch)
    return training.model_copy(update={"precision": precision})


def step_models(context: Context, step: int, training: TrainingConfig) -> StepModels:
    """What a step works with; a guide, where it has one, is trained already."""
    return StepModels(
        target=target_of(context, step, training), reference=reference_of(context, step, training)
    )


def _step_identity(
    context: Context, step: int, training: TrainingConfig, models: StepModels
) -> tuple[dict[str, Any], dict[str, str]]:
    """The identity of a step, and its inputs alone."""
    config = context.config
    inputs = models.inputs() | {
        "partition": _partition_digest(context, step),
        "tokenizer": context.resolved.inputs["tokenizer"],
        **inputs_of("objectives", training.objective, context.resolved.inputs),
    }
    return (
        step_identity(training, launch=config.launch, model=config.model, inputs=inputs),
        inputs,
    )


def _train_guide(context: Context, step: int, training: TrainingConfig) -> None:
    """The first pass of Pre-DPO (arXiv 2504.15843): from the step's target, on the step's data.

    Its reference is its own start. It is published as ``guide-<step>``, and scores what the step
    will read of it while it is in memory.
    """
    node, target = f"guide-{step}", target_of(context, step, context.config.training_of(step))
    models = StepModels(target=target, reference=target)
    identity, inputs = _step_identity(context, step, training, models)
    record = context.done(node, identity)
    if record is None:
        record = train_node(
            context,
            node=node,
            step=step,
            task="preference",
            training=training,
            start=target,
            models={role: {"choice": "start", "name": target.name} for role in _ROLES},
            score_as_reference=True,
            identity=identity,
            inputs=inputs,
        )
    context.settle(node, record)


def _partition_digest(context: Context, step: int) -> str:
    """Digest of D_step's token rows in the plan's order: what is trained on, whatever its files."""
    rows = rows_of_steps(context.run.plan, step)
    return rows_digest(TokenFile.open(tokens_path(context)).digests(rows))
