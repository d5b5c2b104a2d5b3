"""Say which step a curriculum would have given a reserved pair.

A curriculum cuts the order of one feature into steps, so a reserved pair belongs to the step whose
training pairs have its feature between them, or to the nearest. Of sources, or of draws, no rule
tells reserved pairs apart: there the steps share what they share.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sdpo.stats.bootstrap import Floats

_FEATURE = "feature:"


def assigned(path: Path) -> dict[int, NDArray[np.str_]]:
    """Return the ids of reserved pairs of each step in ``plan.parquet`` at ``path``.

    It is empty where the plan does not go by one feature. A pair whose feature is unknown belongs
    to no step, and a step that has no pair of a known one, as after `sdpo extend`, has none.
    """
    named = [name for name in pq.read_schema(path).names if name.startswith(_FEATURE)]
    if len(named) != 1:
        return {}
    table = pq.read_table(path, columns=["token_row", "step", named[0]])
    row_of, step_of, values = (table[name].to_numpy() for name in table.column_names)
    values = values.astype(np.float64)
    is_first = np.ones(len(row_of), dtype=bool)  # entries are by pair; rehearsed ones come again
    is_first[1:] = row_of[1:] != row_of[:-1]
    known = np.isfinite(values)
    held = (step_of == 0) & known
    of_step = {
        int(step): values[(step_of == step) & is_first & known]
        for step in np.unique(step_of)
        if step
    }
    parts = {step: part for step, part in of_step.items() if len(part)}
    if not parts or not held.any():
        return {}
    nearest = _nearest(values[held], list(parts.values()))
    reserved = _ids(path, held)
    return {step: reserved[nearest == place] for place, step in enumerate(parts)}


def _ids(path: Path, which: NDArray[np.bool_]) -> NDArray[np.str_]:
    """Return the ids of these entries; those of a hundred million are never held at once."""
    found: list[str] = []
    start = 0
    for batch in pq.ParquetFile(path).iter_batches(columns=["pair_id"]):
        found += batch.column(0).filter(pa.array(which[start : start + len(batch)])).to_pylist()
        start += len(batch)
    return np.array(found, dtype=np.str_)


def _nearest(values: Floats, parts: list[Floats]) -> NDArray[np.intp]:
    """Return the place of the part whose range is nearest to each value; of several the first."""
    lows, highs = (np.array([bound(part) for part in parts]) for bound in (np.min, np.max))
    below, above = lows - values[:, None], values[:, None] - highs
    nearest: NDArray[np.intp] = np.argmin(np.maximum(0.0, np.maximum(below, above)), axis=1)
    return nearest
