"""Find what the supervised stage will train on before anything is trained."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from sdpo.chain.context import Context
from sdpo.chain.tokens import tokens_path
from sdpo.data.parquet_columns import Columns
from sdpo.data.readers import numbered
from sdpo.errors import DataError, IntegrityError
from sdpo.store.records import DataOutputs
from sdpo.tokens.token_file import SupervisedTokenFile


@dataclass(frozen=True, slots=True)
class ExamplesLeft:
    """The supervised source's examples are counted: how many are left, and why others are not.

    ``read`` are rows of the source, ``kept`` those that can be used as text, ``usable`` as tokens.
    ``rows`` are the rows of the token file that are trained on, int64 ``[examples]``. ``rejected``
    counts the others by their reason.
    """

    read: int
    kept: int
    usable: int
    rows: np.ndarray
    rejected: dict[str, int]


def examples_left(context: Context) -> ExamplesLeft | None:
    """Return the examples of a supervised source; None where the stage has none of its own.

    Raises:
        DataError: none is left to train on; says why.
        IntegrityError: the record of the data does not mention them.
    """
    config = context.config.supervised
    if not config.from_source or context.carried:
        return None
    counts = context.run.record("data").read_outputs(DataOutputs).supervised
    if counts is None:
        raise IntegrityError(f"{context.run.record_path('data')} says nothing of the examples")
    file = SupervisedTokenFile.open(tokens_path(context, "supervised"))
    usable = pq.read_table(context.run.usable, columns=["prompt_key", "reserved"])
    held = set(usable.filter(usable["reserved"])["prompt_key"].to_pylist())
    keys, rows = file.prompt_keys, np.flatnonzero(file.usable)
    trained = np.array([row for row in rows.tolist() if keys[row] not in held], dtype=np.int64)
    reasons = Counter(reason for _, reason, _ in file.rejected())
    rejected = counts.rejected | dict(sorted(reasons.items()))
    if reserved := len(rows) - len(trained):
        rejected["reserved_prompt"] = reserved
    if not len(trained):
        told = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
        raise DataError(
            f"supervised.path {config.path}: no example is left to train on ({told}). "
            f"{_first(context, file, rejected)}"
        )
    return ExamplesLeft(counts.read, counts.kept, len(rows), trained, rejected)


def _first(context: Context, file: SupervisedTokenFile, rejected: dict[str, int]) -> str:
    """Return what is wrong with the first example that cannot be used as tokens, and what to do."""
    for row, _, detail in file.rejected():
        rows = Columns(context.run.path / "supervised.parquet").numbers("row")
        place = numbered(context.config.supervised.path, int(rows[row]))
        return f"{place.capitalize()}: {detail}"
    assert "reserved_prompt" in rejected, "an example is usable or has a reason"
    return (
        "All the others have reserved prompts, which are never trained on: give other examples, or "
        "lower data.reserve.fraction and data.reserve.min_pairs (or data.reserve.pairs)"
    )
