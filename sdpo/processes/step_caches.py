"""Find the caches of log-probs that a step's stage reads and adds to."""

from sdpo.identity.scoring import scoring_identities, scoring_identity
from sdpo.processes.stage_specs import ReferenceSpec, StepSpec
from sdpo.store.logp_cache import LogpCache
from sdpo.store.run_folder import RunFolder


def open_cache(spec: StepSpec, digest: str) -> LogpCache:
    """Return the cache of a model's log-probs under this stage's arithmetic."""
    key = scoring_identity(digest, training=spec.training, launch=spec.launch, model=spec.model)
    return LogpCache(spec.cache, key, scored_for=RunFolder(spec.run).mark)


def reference_caches(spec: StepSpec, reference: ReferenceSpec) -> list[LogpCache]:
    """Return the caches in which the reference's log-probs may be, the likelier first."""
    keys = scoring_identities(
        reference.digest, training=spec.training, launch=spec.launch, model=spec.model
    )
    return [LogpCache(spec.cache, key) for key in keys]


def caches_of(spec: StepSpec) -> list[LogpCache]:
    """Return the caches that the stage reads: of its input model, and of another reference."""
    others = reference_caches(spec, spec.reference) if spec.reference else []
    return [open_cache(spec, spec.input_digest), *others]
