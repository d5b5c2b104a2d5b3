"""Make one step in one process with one model load: measure, score, check, train, publish, measure.

The model that is loaded is the target, M_{t-1} unless the recipe says otherwise: first it is the
reference, then it is the policy, and what is published is M_t. A reference that is another model is
scored before, by the same kind of stage, told to do only that. The supervised stage (step 0) is the
same without a reference.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdpo.data.parquet_columns import Columns, append_columns
from sdpo.errors import Fault
from sdpo.events import EventWriter, WorkEvent
from sdpo.model.sequence_scorer import plain_attention
from sdpo.model.share import share_of
from sdpo.model.shares import whole
from sdpo.model_names import ModelName
from sdpo.plugins.recorded import check_unchanged
from sdpo.processes.stage_results import StepResult
from sdpo.processes.stage_specs import StepSpec
from sdpo.processes.step_caches import caches_of, open_cache
from sdpo.scoring.probes import (
    CompletionPrompt,
    completion_prompts,
    measure,
    probe_rows,
    write_completions,
)
from sdpo.scoring.score_rows import score_rows
from sdpo.stages.expected_work import expected_work
from sdpo.stages.failed_kernels import kernels_named
from sdpo.stages.layout_trial import settle_layout
from sdpo.stages.reference_cache import score_as_reference
from sdpo.stages.reference_rows import Reference, score_reference
from sdpo.stages.resume_states import find
from sdpo.stages.session import Session, open_session
from sdpo.stages.step_context import StepFiles
from sdpo.stages.timings import Timings
from sdpo.stages.train import key_of, train_preference, train_supervised
from sdpo.store.records import ScoredRows
from sdpo.store.resume_states import SavedState, states_folder
from sdpo.store.run_folder import RunFolder
from sdpo.store.step_data import own_probe
from sdpo.system.files import publish_file
from sdpo.system.out_of_memory import first_line, is_out_of_memory
from sdpo.tokens.token_file import TokenFile


def run(spec: StepSpec, events: EventWriter) -> StepResult:
    """Do what ``spec`` says and return the result event's fields.

    Raises:
        PluginError: the objective's package is not what it was when the run was opened.
    """
    check_unchanged(spec.inputs, {}, spec.run.name)
    timings = Timings()
    events.emit(WorkEvent(phases=expected_work(spec)))
    with timings.of("load"):
        session = open_session(spec, events)
        share_of(session.accelerator).see_as_first(_left_behind(spec))
        tokens = TokenFile.open(*spec.token_files)
    with timings.of("check"):
        settle_layout(session, tokens, _rows_to_come(spec), events)
    with kernels_named(session.spec.training, layout=session.layout):
        scored_rows = _work(session, tokens, timings, events)
    session.close()
    return StepResult(
        scored_rows=scored_rows, model=session.published_digest, timings_s=timings.rounded()
    )


def _left_behind(spec: StepSpec) -> list[Path]:
    """Return what earlier stages left that decides what this one does, and in which order."""
    states = sorted(states_folder(spec.folder).glob("[0-9]*"))
    kept = [spec.folder / "reference.parquet", spec.folder / "budget.json"]
    return [*kept, *states, *(cache.folder for cache in caches_of(spec))]


def _work(
    session: Session, tokens: TokenFile, timings: Timings, events: EventWriter
) -> ScoredRows | None:
    """Do all that the stage does with the model once its layout is settled.

    Returns how many rows were scored where it scored every pair, else None.
    """
    spec = session.spec
    step = StepFiles(
        session=session,
        tokens=tokens,
        events=events,
        timings=timings,
        saved=_saved(session, events) if spec.trains else None,
    )
    scored_rows: ScoredRows | None = None
    reference: Reference | None = None
    digest, name, node = spec.input_digest, spec.input_name, spec.input_name
    for phase in spec.phases:
        match phase:
            case "score_everything":
                with timings.of("score"):
                    scored_rows = _score_everything(session, tokens, events)
            case "score_as_reference":
                with timings.of("score"):
                    score_as_reference(session, tokens, events, digest=digest, name=node)
            case "reference":
                reference = score_reference(step)
            case "measure":
                with timings.of("measure"):
                    _measure(session, tokens, events, name=name, digest=digest)
            case "measure_own":
                with timings.of("measure"):
                    _measure_own(session, tokens, events, name=name, digest=digest)
            case "preference":
                train_preference(step, _scored(reference))
            case "supervised":
                train_supervised(step)
        if phase == spec.trains:
            digest, name, node = session.published_digest, str(ModelName(spec.step)), spec.name
    return scored_rows


def _rows_to_come(spec: StepSpec) -> np.ndarray:
    """Return the token rows that the stage is about: those of D_t, or all that can be used."""
    if {"preference", "score_as_reference"} & set(spec.phases) and spec.plan is not None:
        rows = spec.planned.rows_of(spec.step)
        if len(rows):
            return rows
    return Columns(spec.usable).numbers("token_row")


def _scored(reference: Reference | None) -> Reference:
    """Return the reference that the policy is compared with, which was scored before.

    Raises:
        Fault: it was not scored.
    """
    if reference is None:
        raise Fault("a step that compares is trained before its reference is scored")
    return reference


def _saved(session: Session, events: EventWriter) -> SavedState | None:
    """Return the state in which an earlier attempt at this step was left."""
    spec = session.spec
    return find(
        spec.folder,
        key=key_of(spec),
        accelerator=session.accelerator,
        events=events,
    )


def _score_everything(session: Session, tokens: TokenFile, events: EventWriter) -> ScoredRows:
    """Publish gamma of every usable pair under the input model: a feature for the partition.

    Returns how many rows were computed, and how many came from the cache.
    """
    spec = session.spec
    rows = Columns(spec.usable).numbers("token_row")
    cache = open_cache(spec, spec.input_digest)
    scored = score_rows(
        session.scorer(),
        tokens,
        rows,
        cache=cache,
        events=events,
        phase=f"gamma of every pair under {spec.input_name}",
    )
    if session.accelerator.is_main_process:
        chosen = scored.logps.chosen.astype(np.float64)
        rejected = scored.logps.rejected.astype(np.float64)
        per_token = chosen / tokens.chosen_lengths[rows] - rejected / tokens.rejected_lengths[rows]
        gamma = {"gamma": chosen - rejected, "gamma_per_token": per_token}
        with publish_file(RunFolder(spec.run).features) as temporary:
            append_columns(spec.usable, temporary, ["pair_id"], gamma, rows=np.arange(len(rows)))
    return ScoredRows(computed=scored.computed, cached=scored.cached)


def _measure(
    session: Session, tokens: TokenFile, events: EventWriter, *, name: str, digest: str
) -> None:
    """Publish the probe of the model in memory, and its completions."""
    spec = session.spec
    out = RunFolder(spec.run).probes
    step = ModelName.of(name).step
    plan = spec.planned.up_to(step).table()
    measure(
        session.scorer(),
        tokens,
        probe_rows(plan, step=step, next_whole=step + 1 in spec.references),
        name=name,
        cache=open_cache(spec, digest),
        out=out,
        events=events,
    )
    shared = spec.launch.shares_weights  # then every rank computes every token with the others
    if spec.probe.completions and (shared or session.accelerator.is_main_process):
        prompts = completion_prompts(plan, tokens, spec.pairs, count=spec.probe.completions)
        _complete(session, prompts, events, name=name, out=out)
    session.wait()


def _measure_own(
    session: Session, tokens: TokenFile, events: EventWriter, *, name: str, digest: str
) -> None:
    """Publish the probe of the model in memory on what D_step has of its own."""
    spec, model = session.spec, ModelName.of(name).step
    measure(
        session.scorer(),
        tokens,
        probe_rows(
            spec.planned.own_table(spec.step),
            step=model,
            next_whole=model + 1 in spec.references,
        ),
        name=own_probe(model, spec.step),
        cache=open_cache(spec, digest),
        out=RunFolder(spec.run).probes,
        events=events,
    )
    session.wait()


def _complete(
    session: Session,
    prompts: Sequence[CompletionPrompt],
    events: EventWriter,
    *,
    name: str,
    out: Path,
) -> None:
    """Publish completions of the model in memory; none where memory does not hold one of them.

    A model that was trained is worth more than what is shown of it.
    """
    plain_attention(session.policy)
    writes = session.accelerator.is_main_process
    try:
        with session.arithmetic(), whole(session.shares or session.policy):
            write_completions(
                session.policy,
                session.tokenizer,
                prompts,
                name=name,
                max_new_tokens=session.spec.probe.completion_tokens,
                device=session.device,
                out=out if writes else None,
                events=events,
            )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or session.spec.launch.shares_weights:
            raise  # the other ranks wait for this one
        events.warning(
            f"no completions of {name}: out of memory with one of them ({first_line(error)}). "
            "Lower probe.completion_tokens, or set probe.completions: 0"
        )
