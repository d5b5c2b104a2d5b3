"""Measurements of the models of a run: found by what they depend on, made where there are none."""

from typing import Any

from sdpo.chain.context import Context
from sdpo.chain.start_stage import reads_previous, scoring_of, step_spec
from sdpo.chain.step_models import model_of
from sdpo.chain.tokens import tokens_path
from sdpo.config import TrainingConfig
from sdpo.identity.payloads import changed_settings
from sdpo.store.reuse import NOT_DONE
from sdpo.store.run_folder import Record
from sdpo.system.files import file_digest


def find_probe(context: Context, number: int) -> tuple[Record | None, str]:
    """The record of M_number's probe if it is whole, else why not."""
    return context.find(f"probe-M_{number}", _probe_identity(context, number))


def record_probe(context: Context, number: int) -> None:
    """Record the probe of M_number, which a stage has published."""
    files = [context.run.probes / f"M_{number}.parquet"]
    completions = context.run.probes / f"M_{number}.completions.json"
    if context.config.probe.completions and completions.is_file():
        files.append(completions)
    node = f"probe-M_{number}"
    context.run.write_record(
        node, {"node": node, "identity": _probe_identity(context, number)}, files=files
    )


def measure_again(context: Context, number: int, training: TrainingConfig, reason: str) -> None:
    """Measure M_number in a stage of its own."""
    node = f"probe-M_{number}"
    why = "not measured yet" if reason == NOT_DONE else reason
    context.listen({"event": "node", "node": node, "status": "run", "reason": why})
    context.executed.append(node)
    context.stage(
        step_spec(
            context,
            name=node,
            step=number,
            task="none",
            training=training,
            model=model_of(context, number),
            measure_input=True,
        )
    )
    record_probe(context, number)


def _probe_identity(context: Context, number: int) -> dict[str, Any]:
    sampled = {} if reads_previous(context, number + 1) else {"next_partition": "sample"}
    return {
        "scoring": scoring_of(context, model_of(context, number).digest),
        "tokens": tokens_path(context).stem,
        "plan": file_digest(context.run.plan),
        "probe": changed_settings(context.config.probe, "probe"),
        **sampled,
    }
