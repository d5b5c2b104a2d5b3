"""State what log-probs under a model depend on besides the rows: the key of their cache."""

from sdpo.config import LaunchConfig, ModelConfig, TrainingConfig
from sdpo.config.automatic import resolve_layout

SCORING_VERSION = 3
"""This is raised when a change of this project's code changes the log-probs it computes."""


def scoring_key(
    model_digest: str,
    *,
    precision: str,
    device: str,
    threads: int,
    processes: int,
    attention: str,
    layout: str,
    weights: str = "fp32",
) -> dict[str, str | int]:
    """Return what a row's log-probs depend on besides the row itself.

    ``weights``: the precision of those that are computed with, where that is not by operation.
    """
    low: dict[str, str | int] = {} if weights == "fp32" else {"weights": weights}
    return low | {
        "model": model_digest,
        "precision": precision,
        "device": device,
        # On a CPU the last bits depend on the threads of a forward: so many, or with one process
        # and a small model their share of it.
        "threads": threads if device == "cpu" else 0,
        "processes": processes if device == "cpu" else 0,
        "attention": attention,
        "layout": layout,
        "scoring_version": SCORING_VERSION,
    }


def scoring_identity(
    digest: str, *, training: TrainingConfig, launch: LaunchConfig, model: ModelConfig
) -> dict[str, str | int]:
    """Return the cache key of log-probs under the model of ``digest``, apart from the rows."""
    return scoring_key(
        digest,
        precision=training.precision,
        device=launch.device,
        threads=launch.threads,
        processes=launch.processes,
        attention=model.attention,
        layout=resolve_layout(training.layout, attention=model.attention),
        weights=training.precision if launch.strategy == "fsdp2" else "fp32",
    )


def scoring_identities(
    digest: str, *, training: TrainingConfig, launch: LaunchConfig, model: ModelConfig
) -> list[dict[str, str | int]]:
    """Return the keys under which log-probs of a model may be cached that another's step reads.

    A model that the layout does not suit is scored in the plain one, and which models those are is
    known where they are loaded.
    """
    plain = training.model_copy(update={"layout": "padded"})
    own, fallback = (
        scoring_identity(digest, training=each, launch=launch, model=model)
        for each in (training, plain)
    )
    return [own] if own == fallback else [own, fallback]
