"""The nodes that need a model: S, gamma under M_0, the steps, the report."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sdpo.config import TrainingConfig
from sdpo.disk import check_space, step_needs
from sdpo.errors import UserError
from sdpo.files import digest_of, file_digest, read_json, write_json
from sdpo.gamma import gamma_view
from sdpo.identity import rows_digest, scoring_identity, step_identity, supervised_identity
from sdpo.nodes import tokens_path
from sdpo.objectives import OBJECTIVES
from sdpo.origin import Carried
from sdpo.report import write_report as render_report
from sdpo.resolve import resolve_precision
from sdpo.resume import stored_bytes
from sdpo.run import Context, run_once
from sdpo.sharing import detach
from sdpo.spec import StepSpec
from sdpo.store import Record
from sdpo.tokens.store import TokenFile


def model_of(context: Context, number: int) -> tuple[Path, str]:
    """Folder and digest of M_``number``; M_0 is S, or the base model without a supervised stage."""
    if number == 0 and not context.config.supervised.enabled:
        return context.resolved.model, context.resolved.inputs["model"]
    record = context.run.read_record(f"step-{number}")
    assert record is not None, f"M_{number} is made before it is used"
    return context.run.model(number), record["outputs"]["model"]


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
        detach(context.run.step(0) / "metrics.jsonl")
        spec = _spec(
            context,
            name="step-0",
            step=0,
            task="supervised",
            training=training,
            input_model=context.resolved.model,
            input_digest=context.resolved.inputs["model"],
            input_name="base",
            identity=identity,
            inputs=inputs,
        )
        _check_space(context, spec)
        context.stage(spec)
        record = context.run.read_record("step-0")
        assert record is not None, "the stage wrote its record"
    context.settle(record)
    return record


def _carried_supervised(context: Context, carried: Carried) -> Record:
    """S as the run that this one extends made it: from that run's data, whatever was added."""
    for run in (context.run, *context.origins):
        there = None if run.is_damaged("step-0") else run.read_record("step-0")
        if there and digest_of(there["identity"]) == carried.supervised:
            record = context.done("step-0", there["identity"])
            if record:
                context.settle(record)
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
    folder, digest = model_of(context, 0)
    identity = {
        "scoring": _scoring(context, digest),
        "tokens": tokens_path(context).stem,
        "usable": file_digest(context.run.usable),
    }

    def make() -> tuple[dict[str, Any], list[Path]]:
        spec = _spec(
            context,
            name="measure-M_0",
            step=0,
            task="none",
            training=context.config.training,
            input_model=folder,
            input_digest=digest,
            input_name="M_0",
            score_everything=True,
        )
        result = context.stage(spec)
        return {"timings_s": result["timings_s"]}, [context.run.features]

    return run_once(context, "features", identity, make)


def align_step(context: Context, step: int) -> Record:
    """Step ``step``: M_{step-1} is reference and initial target, D_step the data, M_step comes out.

    One stage measures M_{step-1} if nobody has, trains, publishes and measures M_step. Measurements
    that are missing although the step is complete are made again by a stage of their own.
    """
    config = context.config
    training = config.training_of(step)
    training = training.model_copy(
        update={"precision": resolve_precision(training.precision, config.launch)}
    )
    folder, digest = model_of(context, step - 1)
    inputs = {
        "target": digest,
        "partition": _partition_digest(context, step),
        "tokenizer": context.resolved.inputs["tokenizer"],
    }
    if reads_reference(context, step):
        inputs = {"reference": digest} | inputs
    identity = step_identity(training, launch=config.launch, model=config.model, inputs=inputs)
    node = f"step-{step}"
    if context.done(node, identity) is None:
        detach(context.run.step(step) / "metrics.jsonl")
        measure_input = _probe_record(context, step - 1) is None
        spec = _spec(
            context,
            name=node,
            step=step,
            task="preference",
            training=training,
            input_model=folder,
            input_digest=digest,
            input_name=f"M_{step - 1}",
            measure_input=measure_input,
            measure_output=True,
            identity=identity,
            inputs=inputs,
        )
        _check_space(context, spec)
        context.stage(spec)
        if measure_input:
            _record_probe(context, step - 1)
        _record_probe(context, step)
    for number in (step - 1, step):
        if _probe_record(context, number) is None:
            _measure_again(context, number, training)
    record = context.run.read_record(node)
    assert record is not None, "the stage wrote its record"
    context.settle(record)
    _write_gamma(context, step)
    return record


def _check_space(context: Context, spec: StepSpec) -> None:
    """Refuse a step that the disks have no room for."""
    run = context.run
    rows = 2 * pq.read_metadata(run.usable).num_rows  # under the model that comes in, and out
    check_space(
        step_needs(spec.input_model, spec.training, run=run.path, cache=context.cache, rows=rows),
        used_bytes={run.path: stored_bytes(run.step(spec.step))},
        what=spec.name,
    )


def reads_reference(context: Context, step: int) -> bool:
    """Whether the objective of ``step`` reads log-probs of D_step under its reference."""
    return OBJECTIVES[context.config.training_of(step).objective].needs_reference


def _partition_digest(context: Context, step: int) -> str:
    """Digest of D_step's token rows in the plan's order: what is trained on, whatever its files."""
    plan = pq.read_table(context.run.plan, columns=["step", "token_row"])
    rows = plan["token_row"].to_numpy()[plan["step"].to_numpy() == step]
    return rows_digest(TokenFile.open(tokens_path(context)).digests(rows))


def _probe_identity(context: Context, number: int) -> dict[str, Any]:
    _, digest = model_of(context, number)
    sampled = {} if reads_reference(context, number + 1) else {"next_partition": "sample"}
    return {
        "scoring": _scoring(context, digest),
        "tokens": tokens_path(context).stem,
        "plan": file_digest(context.run.plan),
        "probe": context.config.probe.model_dump(exclude={"bootstrap_resamples"}),
        **sampled,
    }


def _scoring(context: Context, digest: str) -> dict[str, Any]:
    """What log-probs under the model of this digest depend on besides the rows."""
    config = context.config
    return scoring_identity(
        digest, training=config.training, launch=config.launch, model=config.model
    )


def _probe_record(context: Context, number: int) -> Record | None:
    node = f"probe-M_{number}"
    return context.find(node, _probe_identity(context, number))[0]


def _record_probe(context: Context, number: int) -> None:
    files = [context.run.probes / f"M_{number}.parquet"]
    completions = context.run.probes / f"M_{number}.completions.json"
    if context.config.probe.completions and completions.is_file():
        files.append(completions)
    node = f"probe-M_{number}"
    context.run.write_record(
        node, {"node": node, "identity": _probe_identity(context, number)}, files=files
    )


def _measure_again(context: Context, number: int, training: TrainingConfig) -> None:
    folder, digest = model_of(context, number)
    node = f"probe-M_{number}"
    event = {"event": "node", "node": node, "status": "run", "reason": "its measurements are gone"}
    context.listen(event)
    context.executed.append(node)
    context.stage(
        _spec(
            context,
            name=node,
            step=number,
            task="none",
            training=training,
            input_model=folder,
            input_digest=digest,
            input_name=f"M_{number}",
            measure_input=True,
        )
    )
    _record_probe(context, number)


def _spec(
    context: Context, *, name: str, step: int, training: TrainingConfig, **fields: Any
) -> StepSpec:
    config, run = context.config, context.run
    supervised = config.supervised
    from_source = supervised.from_source
    return StepSpec(
        name=name,
        run=run.path,
        model=config.model,
        launch=config.launch,
        base=context.resolved.model,
        tokens=tokens_path(context),
        pairs=run.pairs,
        usable=run.usable,
        plan=run.plan if run.plan.is_file() else None,
        supervised=supervised,
        supervised_tokens=tokens_path(context, "supervised") if from_source else None,
        cache=context.cache,
        training=training,
        evaluation=config.evaluation,
        probe=config.probe,
        tracking=config.tracking,
        references=[n for n in (step, step + 1) if n and reads_reference(context, n)],
        step=step,
        **fields,
    )


def _write_gamma(context: Context, step: int) -> None:
    """``gamma.json``: a view over the probes of M_0..M_step, made anew where one of them is new."""
    files = {f"M_{k}": context.run.probes / f"M_{k}.parquet" for k in range(step + 1)}
    options: dict[str, Any] = {
        "step": step,
        "beta": context.config.training_of(step).beta if reads_reference(context, step) else None,
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
    identity = {str(path.relative_to(context.run.path)): file_digest(path) for path in nodes}
    identity.pop("nodes/report.json", None)

    def make() -> tuple[dict[str, Any], list[Path]]:
        return {}, [render_report(context.run.path)]

    run_once(context, "report", identity, make)
    return context.run.report
