"""Split a reserve: what settings are chosen on, and what is said of the choice.

A winner looks better than it is on the pairs that it won on. So prompts are split by a keyed hash,
the same for every sweep: one part selects and prunes, the other reports.
"""

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ReservePart = Literal["selection", "report"]
_KEY = "sdpo-selection"


def part_of(prompt_keys: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return the part that each prompt is in, ``[n]``: about half are in either."""
    known: dict[str, ReservePart] = {}
    for key in np.unique(prompt_keys).tolist():
        digest = hashlib.sha256(f"{_KEY}:{key}".encode()).digest()
        known[key] = "selection" if digest[0] < 128 else "report"
    return np.array([known[key] for key in prompt_keys.tolist()], dtype=np.str_)
