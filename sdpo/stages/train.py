"""Train a step: gate, loop, log of metrics."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

from sdpo.identity.canonical import digest_of
from sdpo.identity.ranks import result_digest
from sdpo.model.batching import global_batch
from sdpo.model.handed_on import drop_in_adapters, idle_adapters
from sdpo.model.routers import asked_weight
from sdpo.processes.stage_specs import StepSpec
from sdpo.stages.compiling import compiled_blocks
from sdpo.stages.examples import preference_task, supervised_task
from sdpo.stages.publish import publish
from sdpo.stages.reference_cache import compared_with, note_checked
from sdpo.stages.reference_rows import Reference, score_reserve, state_of
from sdpo.stages.repeatable import repeatable
from sdpo.stages.resume_states import METRICS, Checkpoints
from sdpo.stages.settle_budget import settle_budget
from sdpo.stages.step_context import StepFiles
from sdpo.stages.trackers import start_trackers
from sdpo.store.budget import Budget
from sdpo.store.records import GateFacts, ScoredRows, StepFacts
from sdpo.store.resume_states import SavedState
from sdpo.system.files import file_digest
from sdpo.training import gate
from sdpo.training.sums import Metrics
from sdpo.training.tasks import PreferenceTask, Task
from sdpo.training.trainer import Trainer

_NAMED = 3
"""So many modules are named in a message."""


def train_preference(step: StepFiles, reference: Reference) -> None:
    """Pass the gate, train against ``reference``, and publish M_t with its record."""
    training = step.spec.training
    task = preference_task(step.tokens, reference, training)
    held = score_reserve(step)
    reserve_task = preference_task(step.tokens, held, training) if held else None
    trainer = step.session.trainer(training)
    _say_what_differs(step)
    saved = state_of(step, reference)
    key = key_of(step.spec) | {"reference": reference.digest}
    with repeatable(trainer, task, step.events, attention=step.spec.model.attention):
        facts = StepFacts() if saved else _reference_facts(step, trainer, task, reference)
        done, facts = _train(step, trainer, task, reserve_task, saved=saved, key=key, facts=facts)
    inputs = {}
    if reference.scored and step.session.accelerator.is_main_process:
        inputs = {"reference_logps": file_digest(step.folder / "reference.parquet")}
    counts = {"optimizer_steps": done, "pairs": len(task.ids)}
    publish(step, facts, counts=counts, inputs=inputs)


def _say_what_differs(step: StepFiles) -> None:
    """Tell which wishes of the model or the recipe make the loss differ from the plain one."""
    training = step.spec.training
    weight = asked_weight(step.session.policy)
    if weight and not training.router_aux_loss:
        step.events.warning(
            f"the model's configuration has router_aux_loss_coef {weight:g}, and the routers' "
            "load-balancing loss is not added to the objective, where TRL would add it: experts "
            f"may come to be used less evenly. Set training.router_aux_loss: {weight:g} to add it"
        )
    if idle := idle_adapters(step.session.unreached):
        step.events.warning(
            f"the adapters on {len(idle)} modules never train, since the model's code reads the "
            f"weights of these modules past them: {', '.join(idle[:_NAMED])}"
            f"{', ...' if len(idle) > _NAMED else ''}. Name others in training.lora_target_modules"
        )
    if training.lora_r and training.lora_dropout:
        step.events.note(
            f"lora_dropout {training.lora_dropout:g} draws at random: losses of training "
            "are not those of the same pairs when they are measured",
        )


def train_supervised(step: StepFiles) -> None:
    """Train S on completions, and publish it with its record."""
    task = supervised_task(step)
    trainer = step.session.trainer(step.spec.training)
    with repeatable(trainer, task, step.events, attention=step.spec.model.attention):
        done, facts = _train(
            step, trainer, task, None, saved=step.saved, key=key_of(step.spec), facts=StepFacts()
        )
    counts = {"optimizer_steps": done, "examples": len(task.ids)}
    publish(step, facts, counts=counts, inputs={})


def key_of(spec: StepSpec) -> dict[str, str]:
    """Return what a resume state of this step is known by, but for the reference's digest."""
    return {"identity": result_digest(spec.identity), "input model": spec.input_digest}


def _reference_facts(
    step: StepFiles, trainer: Trainer, task: PreferenceTask, reference: Reference
) -> StepFacts:
    """Return what the record says of the reference: the gate, and the rows scored for the loss."""
    training, scored = step.spec.training, reference.scored
    first, _ = global_batch(
        0, items=len(task.ids), batch_size=training.batch_size, seed=training.seed
    )
    if scored is None:
        why = f"objective {training.objective} reads no reference: there is nothing to compare"
        with step.timings.of("check"):
            apart = gate.check_as_trained(
                trainer, task, first_batch=first, precision=training.precision
            )
        return StepFacts(
            gate=None,
            gate_skipped=why,
            as_trained_nats=apart,
            scored_rows=ScoredRows(computed=0, cached=0),
        )
    with step.timings.of("gate"):
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
    return StepFacts(
        gate=GateFacts(**asdict(passed)),
        scored_rows=ScoredRows(computed=scored.computed, cached=scored.cached),
    )


def _train(
    step: StepFiles,
    trainer: Trainer,
    task: Task,
    reserve: Task | None,
    *,
    saved: SavedState | None,
    key: Mapping[str, str],
    facts: StepFacts,
) -> tuple[int, StepFacts]:
    """Run the loop from its beginning or from ``saved``, writing ``metrics.jsonl``.

    Returns the number of optimizer steps and the record's facts.
    """
    step.folder.mkdir(parents=True, exist_ok=True)
    # The gate saw what was handed on without it, as the reference was scored.
    drop_in_adapters(step.session.policy, step.spec.training.lora_dropout)
    if saved:
        facts = saved.content.facts
        resumed_at = [*facts.resumed_at, saved.optimizer_step]
        facts = facts.model_copy(update={"resumed_at": resumed_at})
        step.timings.add(saved.content.timings_s)
    checkpoints = Checkpoints(
        trainer=trainer,
        folder=step.folder,
        key=key,
        facts=facts,
        timings_s=step.timings.rounded,
        events=step.events,
        held=step.session.held,
        wait=step.session.wait,
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
    # All fields are written, also those at their default.
    settled = {"budget": Budget(**budget.model_dump())} if budget != Budget() else {}
    said = {"compiled": compiled, "base_rounding": step.session.rounding}
    said = {name: fact for name, fact in said.items() if fact}
    return done, facts.model_copy(update=settled | said)


@contextmanager
def _metrics_log(step: StepFiles, *, start: int) -> Iterator[Callable[[int, Metrics], None]]:
    """Yield a function that writes metrics of an optimizer step to the step's log and the trackers.

    ``start``: optimizer steps that are done, whose lines are there.
    """
    spec, accelerator = step.spec, step.session.accelerator
    tracked = bool(spec.tracking.tools)
    if tracked:
        start_trackers(
            accelerator,
            spec.tracking,
            run=spec.run.name,
            name=spec.name,
            settings=spec.training.model_dump(mode="json"),
            start=start,
        )
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
