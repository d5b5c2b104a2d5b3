"""Count the rows in the cache of log-probs that were scored for a run, by model."""

from collections import Counter
from pathlib import Path

import pyarrow as pa

from sdpo.errors import Fault
from sdpo.store.logp_cache import rows_by_run
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json


def rows_scored(cache: Path, run: RunFolder) -> dict[str, int]:
    """Return the rows of a cache that were scored for ``run``, by the digest of the model."""
    mark, rows = run.mark, Counter[str]()
    for key in sorted(cache.glob("logps/*/key.json")):
        try:
            model = str(read_json(key).get("model", ""))
            rows[model] += sum(_rows(part, mark) for part in key.parent.glob("[!.]*.parquet"))
        except (Fault, AttributeError):  # a key that is none is nobody's to count
            continue
    return {model: count for model, count in rows.items() if count}


def _rows(part: Path, mark: str) -> int:
    try:
        count, scored_for = rows_by_run(part)
    except (OSError, pa.ArrowInvalid):  # it went meanwhile
        return 0
    return count if scored_for == mark else 0
