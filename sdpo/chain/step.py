"""Make a step of the chain: its models, its identity, its guide, its training."""

from collections.abc import Mapping

from sdpo.chain.context import Context
from sdpo.chain.kl import measure_kl
from sdpo.chain.merged import merged
from sdpo.chain.node import Errand, Expansion, Find, Identity, Node, Part
from sdpo.chain.other_reference import reference_spec, scored_reference
from sdpo.chain.probes import Probe, probe, record_probe
from sdpo.chain.start_stage import Told, train_node
from sdpo.chain.step_models import StepModels, guided_training, reference_of, target_of
from sdpo.chain.tokens import token_files_up_to
from sdpo.chain.views import write_gamma
from sdpo.config import TrainingConfig
from sdpo.config.reference_choice import effective_reference
from sdpo.identity.payloads import Payload, rows_digest, step_identity
from sdpo.inputs.devices import resolve_precision
from sdpo.model_names import ModelName, NamedModel
from sdpo.plugins.recorded import inputs_of
from sdpo.store.records import merged_node
from sdpo.store.step_data import data_node, generate_node, planned, step_data
from sdpo.tokens.token_file import TokenFile

_ROLES = ("reference", "target")


def align_step(context: Context, step: int, pairs: int) -> Expansion:
    """Return the parts of step ``step``, which make M_step from D_step.

    M_{step-1} is reference and initial target unless the recipe says otherwise. One stage measures
    its input if nobody has, trains, publishes and measures M_step. Measurements that are missing
    although the step is complete are made again by a stage of their own. A guide is trained before,
    and a reference that is not the target scored before, each by its own stage.
    """
    training = resolved_training(context, step)
    node = f"step-{step}"

    def parts() -> list[Part]:
        has_own = any(data.step == step for data in step_data(context.run, last=step))
        own = [Probe(number, step) for number in range(step if has_own else 0)]
        asked = [Probe(step - 1), *own, Probe(step)]
        measured = {each: probe(context, each, training) for each in asked}
        return [
            *(_guide(context, step, training) if effective_reference(training) == "guided" else []),
            *(merged(context, step) if effective_reference(training) == "merged" else []),
            _trained(context, step, training, measured),
            *measured.values(),
            Errand(do=lambda: context.settle(node)),
            write_gamma(context, step),
            measure_kl(context, step, training),
        ]

    return Expansion(
        title=f"step {step}: align on D_{step} ({pairs} pairs)",
        expand=parts,
        foreseen=lambda: (node,),
    )


def _trained(
    context: Context, step: int, training: TrainingConfig, measured: Mapping[Probe, Node]
) -> Node:
    """Return the node that trains, publishes and measures M_step.

    ``measured`` are the nodes of the probes that it may do, and of others.
    """

    def models() -> StepModels:
        return step_models(context, step, training)

    def identity() -> Identity:
        return _step_identity(context, step, training, models())[0]

    def make(find: Find) -> None:
        target, reference = models().target, reference_spec(context, step, models())
        identity, inputs = _step_identity(context, step, training, models())
        start = ModelName.of(target.name).step
        of_input = [Probe(start), Probe(start, step)] if start == step - 1 else []
        missing = [p for p in of_input if p in measured and find(measured[p]).record is None]
        train_node(
            context,
            node=f"step-{step}",
            step=step,
            phases=("reference", *(p.phase for p in missing), "preference", "measure"),
            training=training,
            start=target,
            told=Told(
                reference=reference,
                models={
                    **models().said(training, tokens=reference.tokens if reference else ()),
                    **_data_said(context, step),
                },
                identity=identity,
                inputs=inputs,
            ),
        )
        for each in (*missing, Probe(step)):
            record_probe(context, each)

    target = "step-0" if training.target == "base" else f"step-{step - 1}"
    compared = {
        "base": "step-0",
        "guided": f"guide-{step}",
        "merged": merged_node(step) if step > 1 else "step-0",
        "previous": f"step-{step - 1}",
    }
    reference = compared.get(effective_reference(training), target)
    return Node(
        name=f"step-{step}",
        inputs=("plan", "tokens", data_node(step), target, reference),
        identity=identity,
        first=lambda: scored_reference(context, step, training, models()),
        make=make,
    )


def resolved_training(context: Context, step: int) -> TrainingConfig:
    """Return the settings of a step, with its precision resolved."""
    config = context.config
    training = config.training_of(step)
    precision = resolve_precision(training.precision, config.launch)
    return training.model_copy(update={"precision": precision})


def step_models(context: Context, step: int, training: TrainingConfig) -> StepModels:
    """Return the models of a step; its guide, where it has one, must have been trained."""
    return StepModels(
        target=target_of(context, step, training), reference=reference_of(context, step, training)
    )


def _step_identity(
    context: Context, step: int, training: TrainingConfig, models: StepModels
) -> tuple[Payload, dict[str, str]]:
    """Return the identity of a step, and its inputs alone."""
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


def _data_said(context: Context, step: int) -> dict[str, dict[str, str]]:
    """Return which model has written a generated step's data, for the record; {}: none has."""
    node = generate_node(step)
    if context.run.find(node) is None:
        return {}
    return {"data": {"choice": "generated", "name": str(ModelName(step - 1))}}


def _guide(context: Context, step: int, of_step: TrainingConfig) -> list[Part]:
    """Return the first pass of Pre-DPO (arXiv 2504.15843), on the step's data from its target.

    Its reference is its own start. It is published as ``guide-<step>``; while it is in memory it
    scores what the step will read of it.
    """
    node, training = f"guide-{step}", guided_training(of_step)

    def start() -> NamedModel:
        return target_of(context, step, context.config.training_of(step))

    def asked() -> tuple[Payload, dict[str, str]]:
        models = StepModels(target=start(), reference=start())
        return _step_identity(context, step, training, models)

    def make(_find: Find) -> None:
        identity, inputs = asked()
        train_node(
            context,
            node=node,
            step=step,
            phases=("reference", "preference", "score_as_reference"),
            training=training,
            start=start(),
            told=Told(
                models={role: {"choice": "start", "name": start().name} for role in _ROLES},
                identity=identity,
                inputs=inputs,
            ),
        )

    target = "step-0" if of_step.target == "base" else f"step-{step - 1}"
    return [
        Node(
            name=node,
            inputs=("plan", "tokens", data_node(step), target),
            identity=lambda: asked()[0],
            make=make,
        ),
        Errand(do=lambda: context.settle(node)),
    ]


def _partition_digest(context: Context, step: int) -> str:
    """Return the digest of D_step's token rows in the plan's order: what is trained on."""
    rows = planned(context.run, last=step).rows_of(step)
    return rows_digest(TokenFile.open(*token_files_up_to(context, step)).digests(rows))
