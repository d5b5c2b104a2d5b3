"""Provide what partition strategies know of every pair, from the data, the tokens or a measurement.

A strategy names the features that it needs. The rating difference is in the data and the length in
the tokens; gamma takes a model, and is measured once, under M_0, by a stage of its own.
"""

import hashlib
from collections.abc import Set
from pathlib import Path

import numpy as np

from partitions import PartitionSettings, get
from sdpo.chain.context import Context
from sdpo.chain.node import Find, Identity, Made, Node
from sdpo.chain.start_stage import scoring_of, step_spec
from sdpo.chain.step_models import model_of
from sdpo.chain.tokens import tokens_path
from sdpo.data.parquet_columns import Columns
from sdpo.processes.stage_results import StepResult
from sdpo.system.files import file_digest
from sdpo.tokens.token_file import TokenFile

MODEL_FEATURES = frozenset({"gamma", "gamma_per_token"})
"""These features are measured under M_0; they are columns of ``features.parquet``."""


def needed_features(settings: PartitionSettings) -> frozenset[str]:
    """Return the names of the features that the strategy needs with these settings."""
    return get(settings.strategy).needs(settings)


def features_without_model(
    pairs: Path, rows: np.ndarray, needed: Set[str], tokens: TokenFile
) -> dict[str, np.ndarray]:
    """Return those of the ``needed`` features that take no model, float64 per row of ``rows``.

    ``score_gap``: rating of the chosen answer minus that of the rejected; NaN where the data has
    none. ``length``: tokens of the prompt plus those of the longer side. ``pairs`` is the path of
    ``pairs.parquet``; ``rows`` are rows of it, and of ``tokens``.
    """
    found: dict[str, np.ndarray] = {}
    columns = Columns(pairs)
    if "score_gap" in needed:
        chosen, rejected = (columns.numbers(f"{side}_score") for side in ("chosen", "rejected"))
        found["score_gap"] = (chosen.astype(np.float64) - rejected)[rows]
    if "length" in needed:
        longer = np.maximum(tokens.chosen_lengths, tokens.rejected_lengths)
        found["length"] = (tokens.prompt_lengths + longer)[rows].astype(np.float64)
    return found


def column_digest(values: np.ndarray) -> str:
    """Return the sha256 of a float column as hexadecimal digits, the same on every machine."""
    return hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()


def measure_gamma(context: Context) -> Node:
    """Return the node that makes ``features.parquet``: gamma of every usable pair under M_0.

    Only strategies that need gamma have it in their chain.
    """

    def identity() -> Identity:
        return {
            "scoring": scoring_of(context, model_of(context, 0).digest),
            "tokens": tokens_path(context).stem,
            "usable": file_digest(context.run.usable),
            "columns": sorted(MODEL_FEATURES),
        }

    def make(_find: Find) -> Made:
        spec = step_spec(
            context,
            name="measure-M_0",
            step=0,
            training=context.config.training,
            model=model_of(context, 0),
            phases=("score_everything",),
        )
        result = context.stage(spec).read(StepResult)
        said = result.model_dump(include={"scored_rows", "timings_s"})
        return Made(said, [context.run.features])

    return Node(
        name="features",
        title="measure gamma under M_0",
        inputs=("reserve", "tokens", "step-0"),
        identity=identity,
        make=make,
    )
