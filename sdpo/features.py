"""What partition strategies know of every pair: read from the data, the tokens, or a measurement.

A strategy names the features that it needs. The rating difference stands in the data and the length
in the tokens; gamma takes a model, and is measured once, under M_0, by a stage of its own.
"""

import hashlib
from collections.abc import Set
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from partitions import PartitionSettings, get
from sdpo.tokens.store import TokenFile

MODEL_FEATURES = frozenset({"gamma", "gamma_per_token"})
"""Features that are measured under M_0, as columns of ``features.parquet``."""


def needed_features(settings: PartitionSettings) -> frozenset[str]:
    """Names of the features that the strategy needs with these settings."""
    return get(settings.strategy).needs(settings)


def features_without_model(
    pairs: Path, usable: pa.Table, needed: Set[str], tokens: TokenFile | None
) -> dict[str, np.ndarray]:
    """Those of ``needed`` that take no model, float64 per row of ``usable``.

    ``score_gap``: rating of the chosen answer minus that of the rejected; NaN where the data has
    none. ``length``: tokens of prompt plus the longer side; characters where there are no tokens
    yet. ``pairs`` is ``pairs.parquet``, of which ``usable``'s column ``token_row`` names the rows.
    """
    found: dict[str, np.ndarray] = {}
    rows = usable["token_row"].to_numpy()
    if "score_gap" in needed:
        scores = pq.read_table(pairs, columns=["chosen_score", "rejected_score"]).take(rows)
        chosen, rejected = (scores[name].to_numpy() for name in scores.column_names)
        found["score_gap"] = chosen.astype(np.float64) - rejected
    if "length" in needed and tokens is not None:
        longer = np.maximum(tokens.chosen_lengths, tokens.rejected_lengths)
        found["length"] = (tokens.prompt_lengths + longer)[rows].astype(np.float64)
    elif "length" in needed:
        names = ["prompt_chars", "chosen_chars", "rejected_chars"]
        texts = pq.read_table(pairs, columns=names).take(rows)
        prompt, chosen, rejected = (texts[name].to_numpy() for name in names)
        found["length"] = (prompt + np.maximum(chosen, rejected)).astype(np.float64)
    return found


def column_digest(values: np.ndarray) -> str:
    """sha256 of a float column, the same on every machine."""
    return hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()
