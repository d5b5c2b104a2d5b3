"""The nodes that need a model: S, gamma under M_0, the steps, the report."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sdpo.chain.data import ensure_tokens, tokens_path
from sdpo.chain.features import MODEL_FEATURES
from sdpo.chain.kl import measure_kl
from sdpo.chain.open_run import Context, run_once
from sdpo.chain.probes import find_probe, measure_again, record_probe
from sdpo.chain.start_stage import reads_previous, scoring_of, step_spec, train_node
from sdpo.chain.step_models import (
    NamedModel,
    StepModels,
    check_readable,
    guided_training,
    model_of,
    reference_of,
    reference_spec,
    reference_tokens,
    target_of,
    why_score,
)
from sdpo.config import TrainingConfig
from sdpo.config.reference_choice import effective_reference
from sdpo.data.parquet_columns import rows_of_steps
from sdpo.errors import UserError
from sdpo.identity.payloads import rows_digest, step_identity, supervised_identity
from sdpo.inputs.resolve import resolve_precision
from sdpo.processes.stage_specs import ReferenceSpec
from sdpo.report import write_report as render_report
from sdpo.stats.gamma import gamma_view
from sdpo.store.origin import Carried
from sdpo.store.run_folder import Record
from sdpo.system.files import digest_of, file_digest, read_json, write_json
from sdpo.tokens.token_file import TokenFile

_ROLES = ("reference", "target")


def supervised_step(context: Context) -> Record:
    """Step 0: fine-tune the base model into S."""
    if context.carried:
        return _carried_supervised(context, context.carried)
    config, supervised = context.config, context.config.supervised
    training = _supervised_training(context)
    if supervised.examples == "source":
        content = tokens_path(context, "supervised").stem
    else:
        content = tokens_path(context).stem
    inputs = {
        "base": context.resolved.inputs["model"],
        "tokenizer": context.resolved.inputs["tokenizer"],
        "examples": content,
        "reserve": file_digest(context.run.usable),
    }
    identity = supervised_identity(
        supervised, training, launch=config.launch, model=config.model, inputs=inputs
    )
    record = context.done("step-0", identity)
    if record is None:
        base = NamedModel(
            name="base",
            folder=context.resolved.model,
            digest=context.resolved.inputs["model"],
        )
        record = train_node(
            context,
            node="step-0",
            step=0,
            task="supervised",
            training=training,
            start=base,
            identity=identity,
            inputs=inputs,
        )
    context.settle("step-0", record)
    return record


def _carried_supervised(context: Context, carried: Carried) -> Record:
    """S as the run that this one extends made it: from that run's data, whatever was added."""
    for run in (context.run, *context.origins):
        there = None if run.is_damaged("step-0") else run.read_record("step-0")
        if there and digest_of(there["identity"]) == carried.supervised:
            record = context.done("step-0", there["identity"])
            if record:
                context.settle("step-0", record)
                return record
    raise UserError(
        f"S of this run is that of run {carried.run}, which has none any more that verifies: see "
        f"`sdpo verify {carried.run}`, and make its step 0 again there"
    )


def _supervised_training(context: Context) -> TrainingConfig:
    """The supervised stage's own settings; the rest as in ``training``."""
    supervised = context.config.supervised
    own = ("learning_rate", "lr_schedule", "warmup_ratio", "batch_size", "epochs", "max_steps")
    return context.config.training.model_copy(
        update={name: getattr(supervised, name) for name in own}
    )


def measure_gamma(context: Context) -> Record:
    """``features.parquet``: gamma of every usable pair under M_0, for strategies that need it."""
    model = model_of(context, 0)
    identity = {
        "scoring": scoring_of(context, model.digest),
        "tokens": tokens_path(context).stem,
        "usable": file_digest(context.run.usable),
        "columns": sorted(MODEL_FEATURES),
    }

    def make() -> tuple[dict[str, Any], list[Path]]:
        spec = step_spec(
            context,
            name="measure-M_0",
            step=0,
            task="none",
            training=context.config.training,
            model=model,
            score_everything=True,
        )
        result = context.stage(spec)
        said = {name: result[name] for name in ("scored_rows", "timings_s")}
        return said, [context.run.features]

    return run_once(context, "features", identity, make)


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
        reference = _scored_reference(context, step, training, models)
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
    _write_gamma(context, step)
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


def _scored_reference(
    context: Context, step: int, training: TrainingConfig, models: StepModels
) -> ReferenceSpec | None:
    """See to it that a reference that is not the target is cached and checked for this step."""
    reference = models.reference
    if reference is None or models.agree:
        return None
    own_tokens = None
    if own := reference_tokens(context, reference, step):
        ensure_tokens(context, own, node=own.name)
        check_readable(context, reference, own.out, step)
        own_tokens = own.out
    tokens = own_tokens or tokens_path(context)
    reason = why_score(context, reference, tokens, step, training)
    node = f"reference-{step}"
    status = "run" if reason else "reuse"
    context.listen({"event": "node", "node": node, "status": status, "reason": reason})
    if reason:
        context.executed.append(node)
        spec = step_spec(
            context,
            name=node,
            step=step,
            task="none",
            training=training,
            model=reference,
            score_as_reference=True,
        )
        # The reference pads with a token of its own vocabulary.
        context.stage(spec.model_copy(update={"tokens": tokens, "base": reference.folder}))
    return reference_spec(models, own_tokens)


def _partition_digest(context: Context, step: int) -> str:
    """Digest of D_step's token rows in the plan's order: what is trained on, whatever its files."""
    rows = rows_of_steps(context.run.plan, step)
    return rows_digest(TokenFile.open(tokens_path(context)).digests(rows))


def _write_gamma(context: Context, step: int) -> None:
    """``gamma.json``: a view over the probes of M_0..M_step, made anew where one of them is new."""
    files = {f"M_{k}": context.run.probes / f"M_{k}.parquet" for k in range(step + 1)}
    options: dict[str, Any] = {
        "step": step,
        "beta": context.config.training_of(step).beta if reads_previous(context, step) else None,
        "resamples": context.config.probe.bootstrap_resamples,
        "seed": context.config.probe.seed,
    }
    sizes = {entry["step"]: entry["pairs"] for entry in read_json(context.run.plan_file)["steps"]}
    identity = options | {"probes": {name: file_digest(path) for name, path in files.items()}}

    def make() -> tuple[dict[str, Any], list[Path]]:
        target = context.run.step(step) / "gamma.json"
        write_json(
            target,
            gamma_view(
                {name: pq.read_table(path) for name, path in files.items()}, sizes=sizes, **options
            ),
        )
        return {}, [target]

    run_once(context, f"gamma-{step}", identity, make)


def write_report(context: Context) -> Path:
    """``report.html``, from what is in the run folder; made anew where anything there is new."""
    nodes = sorted(context.run.path.glob("nodes/*.json")) + sorted(
        context.run.path.glob("step-*/record.json")
    )
    records = {str(path.relative_to(context.run.path)): file_digest(path) for path in nodes}
    records.pop("nodes/report.json", None)
    identity = {"records": digest_of(records)[:16]}

    def make() -> tuple[dict[str, Any], list[Path]]:
        return {}, [render_report(context.run.path)]

    run_once(context, "report", identity, make)
    return context.run.report
