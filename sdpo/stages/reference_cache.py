"""Score a step's reference where it is in memory, and read it from the cache elsewhere.

Where reference and target are one model, the step's own stage scores and the gate compares the
policy with what is cached. Where they are not, a stage of its own loads the reference, scores what
is missing, compares a sample of the cache with the model, and notes that it did; the step's stage
loads the target alone and reads.
"""

import numpy as np
import pyarrow as pa

from sdpo.errors import Fault
from sdpo.events import EventWriter
from sdpo.model.batching import global_batch
from sdpo.processes.stage_specs import ReferenceSpec, StepSpec
from sdpo.processes.step_caches import open_cache, reference_caches
from sdpo.scoring.score_rows import Scored, score_rows
from sdpo.stages.session import Session
from sdpo.system import machine
from sdpo.tokens.token_file import Digests, TokenFile
from sdpo.training import gate


def plan_rows(spec: StepSpec, number: int) -> pa.Table:
    """Return the plan's rows of a step; 0 is the reserve."""
    plan = spec.planned.table()
    return plan.filter(pa.array(plan["step"].to_numpy() == number))


def score_as_reference(
    session: Session, tokens: TokenFile, events: EventWriter, *, digest: str, name: str
) -> None:
    """Score D_t and the reserve under the model in memory, and check the cache against it.

    ``name`` is the model's, for messages; ``digest`` is its digest.

    Raises:
        GateError: cached rows are not what the model gives; the message has the numbers.
    """
    spec = session.spec
    trained, held = plan_rows(spec, spec.step), plan_rows(spec, 0)
    rows = pa.concat_tables([trained, held])["token_row"].to_numpy()
    cache, scorer = open_cache(spec, digest), session.scorer()
    phase = f"score D_{spec.step} under {name}, its reference"
    scored = score_rows(scorer, tokens, rows, cache=cache, events=events, phase=phase)
    training = spec.training
    first, _ = global_batch(
        0, items=trained.num_rows, batch_size=training.batch_size, seed=training.seed
    )
    digests = tokens.digests(rows)
    one_of_each_part = np.unique(cache.part_of(digests), return_index=True)[1]
    sample = gate.sample_rows(first, cached=scored.cached_items, seed=training.seed)
    items = np.union1d(sample, one_of_each_part)
    found = gate.check_cache(
        scorer,
        tokens,
        rows,
        scored.logps,
        items=items,
        precision=training.precision,
        name=name,
    )
    if session.accelerator.is_main_process:
        cache.note_check(digests[items], software=machine.versions(), numbers=found.numbers())


def cached_values(
    spec: StepSpec, reference: ReferenceSpec, tokens: TokenFile, rows: pa.Table, *, phase: str
) -> Scored:
    """Return the log-probs of plan ``rows`` under a reference that is not in memory.

    Raises:
        Fault: a row is not cached.
    """
    digests = _digests(reference, tokens, rows)
    found = [cache.lookup(digests) for cache in reference_caches(spec, reference)]
    best = max(found, key=lambda logps: int(np.count_nonzero(logps.present)))
    missing = int(np.count_nonzero(~best.present))
    if missing:
        raise Fault(
            f"{phase}: {missing} rows have no log-probs under {reference.name}, which was to be "
            "scored before this stage"
        )
    return Scored.looked_up(best)


def compared_with(spec: StepSpec, tokens: TokenFile, rows: pa.Table) -> gate.Compared:
    """Return what the gate compares: the policy with the cache, or what a check of the cache found.

    Raises:
        Fault: the reference's cached rows were never compared with the model.
    """
    if spec.reference is None:
        return gate.POLICY
    digests = _digests(spec.reference, tokens, rows)
    for cache in reference_caches(spec, spec.reference):
        if found := cache.check_of(digests, software=machine.versions()):
            return gate.Agreement(
                max_abs_difference_nats=found.max_abs_difference_nats,
                tolerance_nats=found.tolerance_nats,
                pairs=found.pairs,
            )
    raise Fault(f"the cached log-probs under {spec.reference.name} were not checked")


def note_checked(
    spec: StepSpec,
    tokens: TokenFile,
    rows: pa.Table,
    scored: Scored,
    first: np.ndarray,
    passed: gate.GateResult,
) -> None:
    """Note what the gate compared with the policy, for later steps that have it as a reference.

    ``rows`` are those of D_t, ``first`` those of the first global batch. What this process itself
    computed counts as compared too.
    """
    compared = gate.sample_rows(first, cached=scored.cached_items, seed=spec.training.seed)
    known = np.union1d(compared, scored.new_items)
    cache = open_cache(spec, spec.input_digest)
    digests = tokens.digests(rows["token_row"].to_numpy()[known])
    if cache.lookup(digests).present.all():
        numbers = passed.agreement.numbers()
        cache.note_check(digests, software=machine.versions(), numbers=numbers)


def _digests(reference: ReferenceSpec, tokens: TokenFile, rows: pa.Table) -> Digests:
    file = TokenFile.open(*reference.tokens) if reference.tokens else tokens
    return file.digests(rows["token_row"].to_numpy())
