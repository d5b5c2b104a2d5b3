"""Measure the models of a run: a measurement is found by what it depends on, or made."""

from dataclasses import dataclass
from pathlib import Path

from sdpo.chain.context import Context
from sdpo.chain.node import Find, Identity, Made, Node
from sdpo.chain.start_stage import reads_previous, scoring_of, step_spec
from sdpo.chain.step_models import model_of
from sdpo.chain.tokens import tokens_path
from sdpo.config import TrainingConfig
from sdpo.identity.payloads import changed_settings
from sdpo.model_names import ModelName
from sdpo.processes.stage_specs import Phase
from sdpo.store.step_data import data_node, own_digests, own_probe, step_data
from sdpo.system.files import file_digest
from sdpo.system.json_values import JsonObject


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe measures M_``model`` on the plan and on what steps up to it have of their own.

    With ``step``, it measures it on what that later step has of its own, and on nothing else.
    """

    model: int
    step: int = 0

    @property
    def name(self) -> str:
        """Return the name of the probe's file, without its suffix."""
        return own_probe(self.model, self.step) if self.step else str(ModelName(self.model))

    @property
    def node(self) -> str:
        """Return the name of the node that measures."""
        return f"probe-{self.name}"

    @property
    def phase(self) -> Phase:
        """Return what the stage that has loaded the model does."""
        return "measure_own" if self.step else "measure"


def probe(context: Context, asked: Probe, training: TrainingConfig) -> Node:
    """Return the node that measures a model.

    ``training`` says how, where a stage of its own has to do it.
    """

    def make(_find: Find) -> Made:
        context.stage(
            step_spec(
                context,
                name=asked.node,
                step=asked.step or asked.model,
                training=training,
                model=model_of(context, asked.model),
                phases=(asked.phase,),
            )
        )
        return Made(None, _files(context, asked))

    rows = data_node(asked.step) if asked.step else "tokens"
    return Node(
        name=asked.node,
        inputs=("plan", rows, f"step-{asked.model}"),
        identity=lambda: _identity(context, asked),
        make=make,
        is_told=False,
    )


def record_probe(context: Context, asked: Probe) -> None:
    """Record a probe that the stage of a step has published."""
    record: JsonObject = {"node": asked.node, "identity": _identity(context, asked)}
    context.run.write_record(asked.node, record, files=_files(context, asked))


def _files(context: Context, asked: Probe) -> list[Path]:
    files = [context.run.probes / f"{asked.name}.parquet"]
    completions = context.run.probes / f"{asked.name}.completions.json"
    if context.config.probe.completions and completions.is_file():
        files.append(completions)
    return files


def _identity(context: Context, asked: Probe) -> Identity:
    is_whole = reads_previous(context, asked.model + 1) and asked.step in (0, asked.model + 1)
    sampled = {} if is_whole else {"next_partition": "sample"}
    own = step_data(context.run, last=asked.step or asked.model)
    own = own[-1:] if asked.step else own
    of_run = {"tokens": tokens_path(context).stem, "plan": file_digest(context.run.plan)}
    return {
        "scoring": scoring_of(context, model_of(context, asked.model).digest),
        **({} if asked.step else of_run),
        **({"own": own_digests(context.run, own)} if own else {}),
        "probe": changed_settings(context.config.probe, "probe"),
        **sampled,
    }
