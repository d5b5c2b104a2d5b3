"""Start the stage that loads a model, for a node that trains or measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from sdpo.chain.context import Context
from sdpo.chain.node import Identity
from sdpo.chain.tokens import tokens_path
from sdpo.config import TrainingConfig
from sdpo.config.reference_choice import effective_reference
from sdpo.identity.payloads import Payload
from sdpo.identity.ranks import without_ranks
from sdpo.identity.scoring import scoring_identity
from sdpo.model_names import NamedModel
from sdpo.processes.disk_space import check_space, step_needs
from sdpo.processes.stage_specs import Phase, ReferenceSpec, StepSpec
from sdpo.store.budget import Budget
from sdpo.store.links import detach
from sdpo.store.resume_states import stored_bytes
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import planned, step_data
from sdpo.system.json_values import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A stage that trains is told this, besides how to train.

    ``reference``: set where it is not the target. ``models`` and ``inputs`` are what its record
    will say of them, ``identity`` is the node's. ``budget``: what the run that this one replays had
    settled.
    """

    reference: ReferenceSpec | None = None
    models: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    identity: Payload = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    budget: Budget | None = None


def step_spec(
    context: Context,
    *,
    name: str,
    step: int,
    training: TrainingConfig,
    model: NamedModel,
    phases: Sequence[Phase],
    told: Told = Told(),
) -> StepSpec:
    """Return what a stage of ``step`` is told that loads ``model`` and does ``phases`` with it."""
    config, run = context.config, context.run
    supervised = config.supervised
    from_source = supervised.from_source
    return StepSpec(
        name=name,
        run=run.path,
        model=config.model,
        launch=config.launch,
        base=context.resolved.model,
        input_model=model.folder,
        input_digest=model.digest,
        input_name=model.name,
        tokens=tokens_path(context),
        pairs=run.pairs,
        usable=run.usable,
        plan=run.plan if run.plan.is_file() else None,
        own=step_data(run, last=step),
        supervised=supervised,
        supervised_tokens=tokens_path(context, "supervised") if from_source else None,
        cache=context.cache,
        training=training,
        evaluation=config.evaluation,
        probe=config.probe,
        tracking=config.tracking,
        references=[n for n in (step, step + 1) if n and reads_previous(context, n)],
        step=step,
        phases=tuple(phases),
        reference=told.reference,
        models=told.models,
        identity=told.identity,
        inputs=told.inputs,
        budget=told.budget,
    )


def train_node(
    context: Context,
    *,
    node: str,
    step: int,
    training: TrainingConfig,
    start: NamedModel,
    phases: Sequence[Phase],
    told: Told,
) -> None:
    """Run the stage that trains ``node`` from ``start`` and writes its record."""
    detach(context.run.path / node / "metrics.jsonl")
    spec = step_spec(
        context,
        name=node,
        step=step,
        training=training,
        model=start,
        phases=phases,
        told=replace(told, budget=_replayed_budget(context, node, told.identity)),
    )
    check_room(context, context.run, name=node, model=spec.input_model, training=spec.training)
    context.stage(spec)


def _replayed_budget(context: Context, node: str, identity: Payload) -> Budget | None:
    """Return the micro-batch tokens that an origin settled for this node, if it asked the same."""

    def asked(of: Identity) -> tuple[Json, Json]:
        training = of["training"]
        tokens = training.get("micro_batch_tokens") if isinstance(training, Mapping) else None
        return tokens, without_ranks(of)["arithmetic"]

    for origin in context.origins:
        record = None if origin.is_damaged(node) else origin.find_step(node)
        if record and asked(record.identity) == asked(identity):
            return record.budget
    return None


def check_room(
    context: Context, run: RunFolder, *, name: str, model: Path, training: TrainingConfig
) -> None:
    """Refuse the step ``name`` of ``run``, from ``model``, if the disks have no room for it.

    ``run`` may be another than the context's, which knows the pairs.

    Raises:
        DiskFullError: names every disk that is short, with the numbers.
    """
    usable = pq.read_metadata(context.run.usable).num_rows
    own = sum(planned(context.run).own_pairs().values())
    rows = 2 * (usable + own)  # under the model that comes in, and out
    check_space(
        step_needs(model, training, run=run.path, cache=context.cache, rows=rows),
        used_bytes={run.path: stored_bytes(run.path / name)},
        what=name,
    )


def scoring_of(context: Context, digest: str) -> dict[str, str | int]:
    """Return what log-probs under the model of this digest depend on, apart from the rows."""
    config = context.config
    return scoring_identity(
        digest, training=config.training, launch=config.launch, model=config.model
    )


def reads_previous(context: Context, step: int) -> bool:
    """Return whether the reference of ``step`` is M_{step-1}, whose log-probs it then reads."""
    return effective_reference(context.config.training_of(step)) == "previous"
