"""Measure the models of a run: a measurement is found by what it depends on, or made."""

from pathlib import Path

from sdpo.chain.context import Context
from sdpo.chain.node import Find, Identity, Made, Node
from sdpo.chain.start_stage import reads_previous, scoring_of, step_spec
from sdpo.chain.step_models import model_of
from sdpo.chain.tokens import tokens_path
from sdpo.config import TrainingConfig
from sdpo.identity.payloads import changed_settings
from sdpo.system.files import file_digest
from sdpo.system.json_values import JsonObject


def probe(context: Context, number: int, training: TrainingConfig) -> Node:
    """Return the node that measures M_number.

    ``training`` says how, where a stage of its own has to do it.
    """

    def make(_find: Find) -> Made:
        context.stage(
            step_spec(
                context,
                name=f"probe-M_{number}",
                step=number,
                training=training,
                model=model_of(context, number),
                phases=("measure",),
            )
        )
        return Made(None, _files(context, number))

    return Node(
        name=f"probe-M_{number}",
        inputs=("plan", "tokens", f"step-{number}"),
        identity=lambda: _probe_identity(context, number),
        make=make,
        is_told=False,
    )


def record_probe(context: Context, number: int) -> None:
    """Record the probe of M_number, which the stage of a step has published."""
    node = f"probe-M_{number}"
    record: JsonObject = {"node": node, "identity": _probe_identity(context, number)}
    context.run.write_record(node, record, files=_files(context, number))


def _files(context: Context, number: int) -> list[Path]:
    files = [context.run.probes / f"M_{number}.parquet"]
    completions = context.run.probes / f"M_{number}.completions.json"
    if context.config.probe.completions and completions.is_file():
        files.append(completions)
    return files


def _probe_identity(context: Context, number: int) -> Identity:
    sampled = {} if reads_previous(context, number + 1) else {"next_partition": "sample"}
    return {
        "scoring": scoring_of(context, model_of(context, number).digest),
        "tokens": tokens_path(context).stem,
        "plan": file_digest(context.run.plan),
        "probe": changed_settings(context.config.probe, "probe"),
        **sampled,
    }
