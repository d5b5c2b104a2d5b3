"""The training part of a step: reference, gate, loop, publication, record."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sdpo import gate, machine, resume
from sdpo.batching import global_batch
from sdpo.cache import RowLogps
from sdpo.card import write_card
from sdpo.config import TrainingConfig
from sdpo.errors import DataError
from sdpo.events import EventWriter
from sdpo.files import TEMPORARY, digest_of, file_digest, publish_file
from sdpo.headroom import Budget
from sdpo.objectives import OBJECTIVES, settings_of
from sdpo.resume import SavedState
from sdpo.score import Scored, score_rows
from sdpo.spec import StepSpec
from sdpo.stages.checkpoint import METRICS, Checkpoints
from sdpo.stages.compiling import compiled_blocks
from sdpo.stages.headroom import settle_budget
from sdpo.stages.model import Session
from sdpo.stages.reference import (
    cached_values,
    compared_with,
    note_checked,
    open_cache,
    plan_rows,
)
from sdpo.stages.timings import Timings
from sdpo.store import RunFolder
from sdpo.tasks import PreferenceTask, SupervisedTask, Task
from sdpo.tokens.store import SupervisedTokenFile, TokenFile
from sdpo.trainer import Metrics, Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFiles:
    """What the training of a step works with; ``saved``: the state that it goes on from."""

    session: Session
    tokens: TokenFile
    events: EventWriter
    timings: Timings
    saved: SavedState | None = None

    @property
    def spec(self) -> StepSpec:
        """The stage's spec."""
        return self.session.spec

    @property
    def folder(self) -> Path:
        """Where this stage publishes."""
        return self.spec.folder


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

    @property
    def digest(self) -> str:
        """Of the pairs and their values."""
        values = self.logps.T.astype("<f4")
        return digest_of([self.rows["pair_id"].to_pylist(), values.tobytes().hex()])


def key_of(spec: StepSpec) -> dict[str, str]:
    """By what a resume state of this step is known; the reference's digest comes to it."""
    return {"identity": digest_of(spec.identity), "input model": spec.input_digest}


def score_reference(step: StepFiles) -> Reference:
    """D_t under the step's reference: scored, where that is the model in memory and the cache does
    not have it. Publishes the values, if there is a reference.

    A step that goes on from a state keeps the values that it was trained against so far. Nothing is
    scored for an objective that reads no reference.
    """
    rows = plan_rows(step.spec, step.spec.step)
    if not _reads_reference(step.spec):
        if step.session.accelerator.is_main_process:  # what another objective left here
            (step.folder / "reference.parquet").unlink(missing_ok=True)
        return Reference(rows, None)
    if kept := _kept_reference(step, rows):
        return kept
    with step.timings.of("score"):
        scored = _score(step, rows, phase=f"score D_{step.spec.step}")
    _publish_reference(step, rows, scored)
    return Reference(rows, scored)


def _reads_reference(spec: StepSpec) -> bool:
    return OBJECTIVES[spec.training.objective].needs_reference


def train_preference(step: StepFiles, reference: Reference) -> None:
    """Pass the gate, train against ``reference``, publish M_t with its record."""
    training = step.spec.training
    task = _preference_task(step.tokens, reference, training)
    held = plan_rows(step.spec, 0)
    reserve_task = None
    if held.num_rows:
        scored = None
        if _reads_reference(step.spec):
            scored = _score(step, held, phase="score the reserve")
        reserve_task = _preference_task(step.tokens, Reference(held, scored), training)
    trainer = step.session.trainer(training)
    saved = _belonging(step, reference)
    facts = {} if saved else _reference_facts(step, trainer, task, reference)
    key = key_of(step.spec) | {"reference": reference.digest}
    done, facts = _train(step, trainer, task, reserve_task, saved=saved, key=key, facts=facts)
    inputs = {}
    if reference.scored and step.session.accelerator.is_main_process:
        inputs = {"reference_logps": file_digest(step.folder / "reference.parquet")}
    _publish(step, {"optimizer_steps": done, "pairs": len(task.ids), **facts}, inputs=inputs)


def _reference_facts(
    step: StepFiles, trainer: Trainer, task: PreferenceTask, reference: Reference
) -> dict[str, Any]:
    """What the record says of the reference: the gate, and the rows scored for the loss."""
    training, scored = step.spec.training, reference.scored
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
            trainer,
            task,
            first_batch=first,
            precision=training.precision,
            seed=training.seed,
            cached=scored.cached_items,
            compare=compared_with(step.spec, step.tokens, reference.rows),
        )
        if passed.compared == gate.POLICY and step.session.accelerator.is_main_process:
            note_checked(step.spec, step.tokens, reference.rows, scored, first, passed)
    return {
        "gate": asdict(passed),
        "scored_rows": {"computed": scored.computed, "cached": scored.cached},
    }


def train_supervised(step: StepFiles) -> None:
    """Train S on completions, publish it with its record."""
    task = _supervised_task(step)
    trainer = step.session.trainer(step.spec.training)
    done, facts = _train(
        step, trainer, task, None, saved=step.saved, key=key_of(step.spec), facts={}
    )
    _publish(step, {"optimizer_steps": done, "examples": len(task.ids), **facts}, inputs={})


def _kept_reference(step: StepFiles, rows: pa.Table) -> Reference | None:
    """``reference.parquet`` as the state to go on from knows it."""
    path = step.folder / "reference.parquet"
    if step.saved is None or not path.is_file():
        return None
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None  # damaged: the values are looked up again
    names = ("reference_chosen_logps", "reference_rejected_logps")
    if table.num_rows != rows.num_rows or not {"pair_id", *names} <= set(table.column_names):
        return None
    logps = RowLogps(*(table[name].to_numpy() for name in names))
    kept = Reference(rows, Scored.looked_up(logps))
    same = table["pair_id"].to_pylist() == rows["pair_id"].to_pylist()
    return kept if same and kept.digest == step.saved.content["key"]["reference"] else None


def _belonging(step: StepFiles, reference: Reference) -> SavedState | None:
    """The state to go on from, unless it was trained against other reference values."""
    saved = step.saved
    if saved and saved.content["key"]["reference"] != reference.digest:
        step.events.warning(
            f"the resume state of {step.folder.name} was trained against other reference values: "
            "the step starts again"
        )
        return None
    return saved


def _score(step: StepFiles, rows: pa.Table, *, phase: str) -> Scored:
    """Log-probs of ``rows`` under the step's reference."""
    if step.spec.reference:
        return cached_values(step.spec, step.spec.reference, step.tokens, rows, phase=phase)
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
    logps, at = scored.logps, rows["token_row"].to_numpy()
    tokens = step.tokens
    # The policy's tokens say nothing of a reference that cuts the text into others.
    foreign = step.spec.reference is not None and step.spec.reference.tokens is not None
    nothing = pa.nulls(len(at), pa.int32())
    table = pa.table(
        {
            "pair_id": rows["pair_id"],
            "prompt_key": rows["prompt_key"],
            "source": rows["source"],
            "reference_chosen_logps": logps.chosen,
            "reference_rejected_logps": logps.rejected,
            "chosen_tokens": nothing if foreign else tokens.chosen_lengths[at],
            "rejected_tokens": nothing if foreign else tokens.rejected_lengths[at],
            "complete": ~(tokens.chosen_truncated[at] | tokens.rejected_truncated[at]),
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
    """What the supervised stage trains on: its examples, or a fraction of them drawn by the seed.

    Raises:
        DataError: every example has a reserved prompt.
    """
    spec = step.spec
    examples = sorted(_supervised_examples(step), key=lambda example: example[0])
    if not examples:
        raise DataError("the supervised stage has no examples left after setting the reserve aside")
    if spec.supervised.fraction < 1:
        count = max(1, round(len(examples) * spec.supervised.fraction))
        drawn = np.random.default_rng([spec.training.seed, 2]).permutation(len(examples))[:count]
        examples = [examples[i] for i in sorted(drawn)]
    ids, prompts, completions = zip(*examples, strict=True)
    return SupervisedTask(ids=ids, prompts=prompts, completions=completions)


def _supervised_examples(step: StepFiles) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Id, prompt and completion of every example without a reserved prompt."""
    spec = step.spec
    usable = pq.read_table(spec.usable)
    reserved = usable["reserved"].to_numpy(zero_copy_only=False)
    if spec.supervised.examples == "chosen":
        kept = usable.filter(pa.array(~reserved))
        pairs = [step.tokens.row(row) for row in kept["token_row"].to_pylist()]
        return [
            (pair_id, pair.prompt_ids, pair.chosen_ids)
            for pair_id, pair in zip(kept["pair_id"].to_pylist(), pairs, strict=True)
        ]
    assert spec.supervised_tokens is not None, "the supervised source was not tokenised"
    held = set(usable.filter(pa.array(reserved))["prompt_key"].to_pylist())
    file = SupervisedTokenFile.open(spec.supervised_tokens)
    rows = [
        file.row(int(index))
        for index in np.flatnonzero(file.usable)
        if file.prompt_keys[index] not in held
    ]
    return [(row.example_id, row.prompt_ids, row.completion_ids) for row in rows]


def _train(
    step: StepFiles,
    trainer: Trainer,
    task: Task,
    reserve: Task | None,
    *,
    saved: SavedState | None,
    key: Mapping[str, str],
    facts: dict[str, Any],
) -> tuple[int, dict[str, Any]]:
    """Run the loop from its beginning or from ``saved``, writing ``metrics.jsonl``.

    Returns the number of optimizer steps and the record's facts.
    """
    step.folder.mkdir(parents=True, exist_ok=True)
    if saved:
        facts = dict(saved.content["facts"])
        facts["resumed_at"] = [*facts.get("resumed_at", []), saved.optimizer_step]
        step.timings.add(saved.content["timings_s"])
    checkpoints = Checkpoints(
        trainer=trainer,
        folder=step.folder,
        key=key,
        facts=facts,
        timings_s=step.timings.rounded,
        events=step.events,
        sharded=step.session.is_sharded,
    )
    if saved:
        checkpoints.restore(saved)
    settle_budget(
        trainer,
        task,
        folder=step.folder,
        key=digest_of(step.spec.identity),
        given=step.spec.budget,
        events=step.events,
    )
    with (
        compiled_blocks(trainer, task, step.events) as compiled,
        step.timings.of("train"),
        _metrics_log(step, start=trainer.progress.step) as write,
        checkpoints.watched(),
    ):

        def on_step(number: int, total: int, metrics: Metrics) -> None:
            write(number, metrics)
            note = f"loss {metrics['loss']:.4f}"
            if "rewards/accuracies" in metrics:
                note += f", margin {metrics['rewards/margins']:+.3f}"
            step.events.progress("train", number, total, unit="steps", note=note)
            every = step.spec.evaluation.every
            if reserve and (number == total or (every and number % every == 0)):
                measured = trainer.evaluate(reserve)
                write(number, {f"eval_{name}": value for name, value in measured.items()})
            checkpoints.after_step(number, total)

        done = trainer.train(task, on_step=on_step)
    budget = trainer.progress.budget
    settled = {"budget": budget.model_dump(mode="json")} if budget != Budget() else {}
    return done, facts | settled | compiled


@contextmanager
def _metrics_log(step: StepFiles, *, start: int) -> Iterator[Callable[[int, Metrics], None]]:
    """A function that writes metrics of an optimizer step to the step's log and the trackers.

    ``start``: optimizer steps done, whose lines are there.
    """
    spec, accelerator = step.spec, step.session.accelerator
    tracked = bool(spec.tracking.tools)
    if tracked:
        settings = spec.training.model_dump()
        # TensorBoard takes numbers and text alone.
        settings["lora_target_modules"] = " ".join(settings["lora_target_modules"])
        # It drops the points that were logged after the state which training goes on from.
        purge = {"tensorboard": {"purge_step": start + 1}} if start else {}
        accelerator.init_trackers(spec.tracking.project, config=settings, init_kwargs=purge)
    path, log = step.folder / METRICS, None
    if accelerator.is_main_process:
        if not start:
            path.unlink(missing_ok=True)  # its bytes may be another run's too
        log = path.open("a", encoding="utf-8")

    def write(number: int, metrics: Metrics) -> None:
        if log:
            log.write(json.dumps({"step": number, **metrics}) + "\n")
            log.flush()
        if tracked:
            accelerator.log(metrics, step=number)

    try:
        yield write
    finally:
        if log:
            log.flush()
            os.fsync(log.fileno())
            log.close()
        if tracked:
            for tracker in accelerator.trackers:  # end_training would end the process group too
                tracker.finish()


def _publish(step: StepFiles, facts: dict[str, Any], *, inputs: dict[str, str]) -> None:
    """Publish M_t, then the record that makes the step complete."""
    spec, session = step.spec, step.session
    step.events.emit("phase", phase="publish")
    with step.timings.of("publish"):
        digest = session.publish()
    if not session.accelerator.is_main_process:
        return
    name = f"M_{spec.step}" if spec.name.startswith("step-") else spec.name
    who = spec.name.replace("-", " ")
    if digest == spec.input_digest:
        step.events.warning(
            f"{who} changed nothing: {name} is {spec.input_name} to the last bit. It made "
            f"{facts['optimizer_steps']} optimizer steps, and warmup starts at rate 0"
        )
    run, node = RunFolder(spec.run), spec.name
    record = {
        "step": spec.step,
        "name": name,
        "kind": spec.task,
        "identity": spec.identity,
        "identity_digest": digest_of(spec.identity),
        "models": spec.models,
        "inputs": spec.inputs | inputs,
        "outputs": {"model": digest},
        **facts,
        "training": spec.training.model_dump(),
        "timings_s": step.timings.rounded(),
        "environment": _environment(session),
    }
    write_card(run, record, name=name, folder=step.folder / "model")
    files = [path for path in step.folder.rglob("*") if path.is_file()]
    views = {
        "gamma.json",
        "kl.json",
        "record.json",
        "record.json.sha256",
        "README.md",
        "lineage.json",
    }
    files = [f for f in files if f.name not in views and not {"tracking", "resume"} & set(f.parts)]
    files = [f for f in files if not any(part.startswith(TEMPORARY) for part in f.parts)]
    run.write_record(node, record, files=files)
    resume.discard(step.folder)
    step.events.emit("published", name=name, model=digest)


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
