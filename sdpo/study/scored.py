"""Count rows in the cache of log-probs, by model: what was scored meanwhile is the difference."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.errors import Fault
from sdpo.system.files import read_json


def cached_rows(cache: Path) -> dict[str, int]:
    """Return the rows that a cache has, by the digest of the model that scored them."""
    rows: Counter[str] = Counter()
    for key in sorted(cache.glob("logps/*/key.json")):
        try:
            model = str(read_json(key).get("model", ""))
            parts = sorted(key.parent.glob("[!.]*.parquet"))
            rows[model] += sum(_rows(part) for part in parts)
        except (Fault, AttributeError):  # a key that is none is nobody's to count
            continue
    return dict(rows)


def _rows(part: Path) -> int:
    try:
        return int(pq.read_metadata(part).num_rows)
    except (OSError, pa.ArrowInvalid):  # it went meanwhile
        return 0


def scored_since(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """Return the rows that came since, by the digest of the model; those without any left out."""
    since = {model: rows - before.get(model, 0) for model, rows in now.items()}
    return {model: rows for model, rows in since.items() if rows > 0}
