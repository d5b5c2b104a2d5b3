"""Provide log-probs of D_t and the reserve under the step's reference: ``reference.parquet``.

Most were already scored when the model before was measured: the cache has them.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.identity.canonical import digest_of
from sdpo.objectives import objective_facts
from sdpo.processes.stage_specs import StepSpec
from sdpo.processes.step_caches import open_cache
from sdpo.scoring.score_rows import Scored, score_rows
from sdpo.stages.reference_cache import cached_values, plan_rows
from sdpo.stages.step_context import StepFiles
from sdpo.store.logp_cache import RowLogps
from sdpo.store.resume_states import SavedState
from sdpo.system.files import publish_file


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference is D_t with its log-probs under that model, where the objective reads them."""

    rows: pa.Table
    scored: Scored | None

    @property
    def logps(self) -> np.ndarray:
        """Return chosen and rejected log-probs, fp32 ``[pairs, 2]``; NaN where none was scored."""
        if self.scored is None:
            return np.full((self.rows.num_rows, 2), np.nan, dtype=np.float32)
        return np.stack([self.scored.logps.chosen, self.scored.logps.rejected], axis=1)

    @property
    def digest(self) -> str:
        """Return the digest of the pairs and their values."""
        values = self.logps.T.astype("<f4")
        return digest_of([self.rows["pair_id"].to_pylist(), values.tobytes().hex()])


def score_reference(step: StepFiles) -> Reference:
    """Return D_t under the step's reference, and publish the values if there is a reference.

    What is not in the cache is scored, where the reference is the model in memory. A step that goes
    on from a state keeps the values that it was trained against so far. Nothing is scored for an
    objective that reads no reference.
    """
    rows = plan_rows(step.spec, step.spec.step)
    if not reads_reference(step.spec):
        if step.session.accelerator.is_main_process:  # what another objective left here
            (step.folder / "reference.parquet").unlink(missing_ok=True)
        return Reference(rows, None)
    if kept := _kept_reference(step, rows):
        return kept
    with step.timings.of("score"):
        scored = _score(step, rows, phase=f"score D_{step.spec.step}")
    _publish_reference(step, rows, scored)
    return Reference(rows, scored)


def score_reserve(step: StepFiles) -> Reference | None:
    """Return the reserve under the step's reference, for the curve on it; None: there is none."""
    rows = plan_rows(step.spec, 0)
    if not rows.num_rows:
        return None
    if not reads_reference(step.spec):
        return Reference(rows, None)
    return Reference(rows, _score(step, rows, phase="score the reserve"))


def _kept_reference(step: StepFiles, rows: pa.Table) -> Reference | None:
    """Return ``reference.parquet`` if it is what the state to go on from was trained against."""
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
    return kept if same and kept.digest == step.saved.content.key["reference"] else None


def state_of(step: StepFiles, reference: Reference) -> SavedState | None:
    """Return the state to go on from, unless it was trained against other reference values."""
    saved = step.saved
    if saved and saved.content.key["reference"] != reference.digest:
        step.events.warning(
            f"the resume state of {step.folder.name} was trained against other reference values: "
            "the step starts again"
        )
        return None
    return saved


def reads_reference(spec: StepSpec) -> bool:
    """Return whether the step's objective compares the policy with a reference."""
    return objective_facts(spec.training.objective).needs_reference


def _score(step: StepFiles, rows: pa.Table, *, phase: str) -> Scored:
    """Return the log-probs of ``rows`` under the step's reference."""
    if step.spec.reference:
        return cached_values(step.spec, step.spec.reference, step.tokens, rows, phase=phase)
    return score_rows(
        step.session.scorer(),
        step.tokens,
        rows["token_row"].to_numpy(),
        cache=open_cache(step.spec, step.spec.input_digest),
        events=step.events,
        phase=phase,
    )


def _publish_reference(step: StepFiles, rows: pa.Table, scored: Scored) -> None:
    """Publish ``reference.parquet``: the values of its reference that this step trains against."""
    if not step.session.accelerator.is_main_process:
        return
    logps, at = scored.logps, rows["token_row"].to_numpy()
    tokens = step.tokens
    # The policy's tokens say nothing of a reference that cuts the text into others.
    foreign = step.spec.reference is not None and bool(step.spec.reference.tokens)
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
