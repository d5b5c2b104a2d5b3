"""The training part of a step: reference, gate, loop, publication, record."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sdpo import gate, machine
from sdpo.batching import global_batch
from sdpo.cache import LogpCache
from sdpo.card import write_card
from sdpo.config import TrainingConfig
from sdpo.errors import DataError
from sdpo.events import EventWriter
from sdpo.files import TEMPORARY, digest_of, file_digest, publish_file
from sdpo.identity import scoring_identity
from sdpo.objectives import OBJECTIVES, settings_of
from sdpo.score import Scored, score_rows
from sdpo.spec import StepSpec
from sdpo.stages.model import Session
from sdpo.store import RunFolder
from sdpo.tasks import PreferenceTask, SupervisedTask, Task
from sdpo.tokens.store import SupervisedTokenFile, TokenFile
from sdpo.trainer import Metrics, Trainer


@dataclass(slots=True)
class Timings:
    """Seconds per phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Add the time of the block to ``phase``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        """Seconds to the millisecond."""
        return {phase: round(value, 3) for phase, value in self.seconds.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFiles:
    """What the training of a step works with."""

    session: Session
    tokens: TokenFile
    events: EventWriter
    timings: Timings

    @property
    def spec(self) -> StepSpec:
        """The stage's spec."""
        return self.session.spec

    @property
    def folder(self) -> Path:
        """Folder of the step."""
        return RunFolder(self.spec.run).step(self.spec.step)


def open_cache(spec: StepSpec, digest: str) -> LogpCache:
    """The cache of a model's log-probs under this stage's arithmetic."""
    key = scoring_identity(digest, training=spec.training, launch=spec.launch, model=spec.model)
    return LogpCache(spec.cache, key)


@dataclass(frozen=True, slots=True)
class Reference:
    """D_t, with its log-probs under M_{t-1} where the objective reads them."""

    rows: pa.Table
    scored: Scored | None

    @property
    def logps(self) -> np.ndarray:
        """Chosen and rejected, fp32 ``[pairs, 2]``; NaN where nothing was scored."""
        if self.scored is None:
            return np.full((self.rows.num_rows, 2), np.nan, dtype=np.float32)
        return np.stack([self.scored.logps.chosen, self.scored.logps.rejected], axis=1)


def score_reference(step: StepFiles) -> Reference:
    """Score D_t under M_{t-1}, what the cache does not have, and publish the values.

    Nothing is scored for an objective that reads no reference.
    """
    rows = _plan_rows(step.spec, step.spec.step)
    if not _reads_reference(step.spec):
        if step.session.accelerator.is_main_process:  # what another objective left here
            (step.folder / "reference.parquet").unlink(missing_ok=True)
        return Reference(rows, None)
    with step.timings.of("score"):
        scored = _score(step, rows, phase=f"score D_{step.spec.step}")
    _publish_reference(step, rows, scored)
    return Reference(rows, scored)


def _reads_reference(spec: StepSpec) -> bool:
    return OBJECTIVES[spec.training.objective].needs_reference


def train_preference(step: StepFiles, reference: Reference) -> None:
    """Pass the gate, train against ``reference``, publish M_t with its record."""
    session, training = step.session, step.spec.training
    task = _preference_task(step.tokens, reference, training)
    held = _plan_rows(step.spec, 0)
    reserve_task = None
    if held.num_rows:
        scored = None
        if _reads_reference(step.spec):
            scored = _score(step, held, phase="score the reserve")
        reserve_task = _preference_task(step.tokens, Reference(held, scored), training)
    trainer = session.trainer(training)
    facts = _reference_facts(step, trainer, task, reference.scored)
    with step.timings.of("train"):
        done = _train(step, trainer, task, reserve_task)
    inputs = {}
    if reference.scored and session.accelerator.is_main_process:
        inputs = {"reference_logps": file_digest(step.folder / "reference.parquet")}
    _publish(step, {"optimizer_steps": done, "pairs": len(task.ids), **facts}, inputs=inputs)


def _reference_facts(
    step: StepFiles, trainer: Trainer, task: PreferenceTask, scored: Scored | None
) -> dict[str, Any]:
    """What the record says of the reference: the gate, and the rows scored for the loss."""
    training = step.spec.training
    if scored is None:
        why = f"objective {training.objective} reads no reference: there is nothing to compare"
        return {
            "gate": None,
            "gate_skipped": why,
            "scored_rows": {"computed": 0, "cached": 0},
        }
    with step.timings.of("gate"):
        first, _ = global_batch(
            0, items=len(task.ids), batch_size=training.batch_size, seed=training.seed
        )
        passed = gate.check(
            trainer, task, first_batch=first, precision=training.precision, seed=training.seed
        )
    return {
        "gate": asdict(passed),
        "scored_rows": {"computed": scored.computed, "cached": scored.cached},
    }


def train_supervised(step: StepFiles) -> None:
    """Train S on completions, publish it with its record."""
    task = _supervised_task(step)
    trainer = step.session.trainer(step.spec.training)
    with step.timings.of("train"):
        done = _train(step, trainer, task, None)
    _publish(step, {"optimizer_steps": done, "examples": len(task.ids)}, inputs={})


def _plan_rows(spec: StepSpec, number: int) -> pa.Table:
    """The plan's rows of a step; 0 is the reserve."""
    assert spec.plan is not None, "a preference step needs a plan"
    plan = pq.read_table(spec.plan)
    return plan.filter(pa.array(plan["step"].to_numpy() == number))


def _score(step: StepFiles, rows: pa.Table, *, phase: str) -> Scored:
    return score_rows(
        step.session.scorer(),
        step.tokens,
        rows["token_row"].to_pylist(),
        cache=open_cache(step.spec, step.spec.input_digest),
        events=step.events,
        phase=phase,
    )


def _publish_reference(step: StepFiles, rows: pa.Table, scored: Scored) -> None:
    """``reference.parquet``: the values that this step trains against, under M_{t-1}."""
    if not step.session.accelerator.is_main_process:
        return
    logps = scored.logps
    pairs = [step.tokens.row(row) for row in rows["token_row"].to_pylist()]
    table = pa.table(
        {
            "pair_id": rows["pair_id"],
            "reference_chosen_logps": logps.chosen,
            "reference_rejected_logps": logps.rejected,
            "chosen_tokens": pa.array([len(p.chosen_ids) for p in pairs], pa.int32()),
            "rejected_tokens": pa.array([len(p.rejected_ids) for p in pairs], pa.int32()),
        }
    )
    with publish_file(step.folder / "reference.parquet") as temporary:
        pq.write_table(table, temporary)


def _preference_task(
    tokens: TokenFile, reference: Reference, training: TrainingConfig
) -> PreferenceTask:
    pairs = [tokens.row(row) for row in reference.rows["token_row"].to_pylist()]
    return PreferenceTask(
        ids=reference.rows["pair_id"].to_pylist(),
        prompts=[pair.prompt_ids for pair in pairs],
        chosen=[pair.chosen_ids for pair in pairs],
        rejected=[pair.rejected_ids for pair in pairs],
        reference=reference.logps,
        objective=training.objective,
        settings=settings_of(training.model_dump()),
    )


def _supervised_task(step: StepFiles) -> SupervisedTask:
    """Examples of the supervised stage: none has a reserved prompt; a fraction, if so set."""
    spec = step.spec
    usable = pq.read_table(spec.usable)
    if spec.supervised.examples == "chosen":
        kept = usable.filter(pa.array(~usable["reserved"].to_numpy(zero_copy_only=False)))
        pairs = [step.tokens.row(row) for row in kept["token_row"].to_pylist()]
        examples = [
            (pair_id, pair.prompt_ids, pair.chosen_ids)
            for pair_id, pair in zip(kept["pair_id"].to_pylist(), pairs, strict=True)
        ]
    else:
        assert spec.supervised_tokens is not None, "the supervised source was not tokenised"
        reserved = usable.filter(pa.array(usable["reserved"].to_numpy(zero_copy_only=False)))
        held = set(reserved["prompt_key"].to_pylist())
        file = SupervisedTokenFile.open(spec.supervised_tokens)
        rows = [
            file.row(int(index))
            for index in np.flatnonzero(file.usable)
            if file.prompt_keys[index] not in held
        ]
        examples = [(row.example_id, row.prompt_ids, row.completion_ids) for row in rows]
    if not examples:
        raise DataError("the supervised stage has no examples left after setting the reserve aside")
    examples.sort(key=lambda example: example[0])
    if spec.supervised.fraction < 1:
        count = max(1, round(len(examples) * spec.supervised.fraction))
        drawn = np.random.default_rng([spec.training.seed, 2]).permutation(len(examples))[:count]
        examples = [examples[i] for i in sorted(drawn)]
    ids, prompts, completions = zip(*examples, strict=True)
    return SupervisedTask(ids=ids, prompts=prompts, completions=completions)


def _train(step: StepFiles, trainer: Trainer, task: Task, reserve: Task | None) -> int:
    """Run the loop, writing ``metrics.jsonl`` and feeding the trackers."""
    spec, accelerator = step.spec, step.session.accelerator
    tracked = bool(spec.tracking.tools)
    if tracked:
        settings = spec.training.model_dump()
        # TensorBoard takes numbers and text alone.
        settings["lora_target_modules"] = " ".join(settings["lora_target_modules"])
        accelerator.init_trackers(spec.tracking.project, config=settings)
    step.folder.mkdir(parents=True, exist_ok=True)
    path = step.folder / "metrics.jsonl"
    log = path.open("w", encoding="utf-8") if accelerator.is_main_process else None

    def write(number: int, metrics: Metrics) -> None:
        if log:
            log.write(json.dumps({"step": number, **metrics}) + "\n")
            log.flush()
        if tracked:
            accelerator.log(metrics, step=number)

    def on_step(number: int, total: int, metrics: Metrics) -> None:
        write(number, metrics)
        note = f"loss {metrics['loss']:.4f}"
        if "rewards/accuracies" in metrics:
            note += f", margin {metrics['rewards/margins']:+.3f}"
        step.events.progress("train", number, total, unit="steps", note=note)
        every = spec.evaluation.every
        if reserve and (number == total or (every and number % every == 0)):
            measured = trainer.evaluate(reserve)
            write(number, {f"eval_{name}": value for name, value in measured.items()})

    try:
        done = trainer.train(task, on_step=on_step)
    finally:
        if log:
            log.close()
        if tracked:
            for tracker in accelerator.trackers:  # end_training would end the process group too
                tracker.finish()
    return done


def _publish(step: StepFiles, facts: dict[str, Any], *, inputs: dict[str, str]) -> None:
    """Publish M_t, then the record that makes the step complete."""
    spec, session = step.spec, step.session
    with step.timings.of("publish"):
        digest = session.publish()
    if not session.accelerator.is_main_process:
        return
    if digest == spec.input_digest:
        step.events.warning(
            f"step {spec.step} changed nothing: M_{spec.step} is {spec.input_name} to the last "
            f"bit. It made {facts['optimizer_steps']} optimizer steps, and warmup starts at rate 0"
        )
    run, node = RunFolder(spec.run), f"step-{spec.step}"
    record = {
        "step": spec.step,
        "kind": spec.task,
        "identity": spec.identity,
        "identity_digest": digest_of(spec.identity),
        "inputs": spec.inputs | inputs,
        "outputs": {"model": digest},
        **facts,
        "training": spec.training.model_dump(),
        "timings_s": step.timings.rounded(),
        "environment": _environment(session),
    }
    write_card(run, record, name=f"M_{spec.step}")
    files = [path for path in step.folder.rglob("*") if path.is_file()]
    views = {"gamma.json", "record.json", "record.json.sha256", "README.md", "lineage.json"}
    files = [f for f in files if f.name not in views and "tracking" not in f.parts]
    files = [f for f in files if not any(part.startswith(TEMPORARY) for part in f.parts)]
    run.write_record(node, record, files=files)
    step.events.emit("published", step=spec.step, model=digest)


def _environment(session: Session) -> dict[str, Any]:
    device = session.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "processes": session.accelerator.num_processes,
        "strategy": session.spec.launch.strategy,
        "threads": torch.get_num_threads(),
        "versions": machine.versions(),
    }
