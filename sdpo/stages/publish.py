"""Publish what a step trained: its model, then the record that makes it complete."""

from collections.abc import Mapping

import torch

from sdpo.events import PublishedEvent
from sdpo.identity.canonical import digest_of
from sdpo.model_names import ModelName
from sdpo.stages.session import Session
from sdpo.stages.step_context import StepFiles
from sdpo.store import resume_states
from sdpo.store.model_card import write_card
from sdpo.store.published_files import published_files
from sdpo.store.records import StepFacts, StepRecord
from sdpo.store.run_folder import RunFolder
from sdpo.system import machine
from sdpo.system.json_values import JsonObject


def publish(
    step: StepFiles, facts: StepFacts, *, counts: Mapping[str, int], inputs: Mapping[str, str]
) -> None:
    """Publish M_t, then the record that makes the step complete.

    ``counts``: the number of optimizer steps, and of the pairs or examples.
    """
    spec, session = step.spec, step.session
    step.events.phase("publish")
    with step.timings.of("publish"):
        digest = session.publish()
    if not session.accelerator.is_main_process:
        return
    if rounded := session.rounded_again:
        facts = facts.model_copy(update={"merge_rounding": rounded})
        step.events.warning(
            f"the merged weights were rounded to {rounded.precision} again: on {rounded.pairs} "
            f"reserved pairs the log-probs of what is published are {rounded.nats_per_token:.3g} "
            "nats a token from those of what was trained, a completion's at most "
            f"{rounded.largest_nats:.3g}, a pair's margin {rounded.gamma_nats:.3g} on average. "
            "With training.lora_handoff: continue they are the same"
        )
    name = str(ModelName(spec.step)) if spec.name.startswith("step-") else spec.name
    who = spec.name.replace("-", " ")
    if digest == spec.input_digest:
        step.events.warning(
            f"{who} changed nothing: {name} is {spec.input_name} to the last bit. It made "
            f"{counts['optimizer_steps']} optimizer steps, and warmup starts at rate 0"
        )
    run, node = RunFolder(spec.run), spec.name
    content = {
        "step": spec.step,
        "name": name,
        "kind": spec.trains,
        "identity": spec.identity,
        "identity_digest": digest_of(spec.identity),
        "models": spec.models,
        "inputs": {**spec.inputs, **inputs},
        "outputs": {"model": digest},
        **counts,
        **facts.model_dump(mode="json", exclude_unset=True),
        "training": spec.training.model_dump(mode="json"),
        "timings_s": step.timings.rounded(),
        "environment": _environment(session),
    }
    record = StepRecord.model_validate(content)
    write_card(run, record, name=name, folder=step.folder / "model")
    run.write_record(node, record.as_json(), files=published_files(run, node))
    resume_states.discard(step.folder)
    step.events.emit(PublishedEvent(name=name, model=digest))


def _environment(session: Session) -> JsonObject:
    device = session.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "processes": session.accelerator.num_processes,
        "strategy": session.spec.launch.strategy,
        "threads": torch.get_num_threads(),
        "versions": machine.versions(),
    }
