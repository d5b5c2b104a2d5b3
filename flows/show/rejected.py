"""Tell which rows are not used and why, with the first of each kind."""

import json
from collections import Counter
from pathlib import Path

from flows.show.console import Row

_NOT_SHOWN = ("limit", "max_pairs", "weight")
"""Rows with these reasons were not drawn: there is nothing to mend."""


def rejected_rows(path: Path) -> list[Row]:
    """Return a row per source and reason in ``rejected_rows.jsonl``: how many, and the first.

    Rows that were only not drawn are left out.
    """
    first: dict[tuple[str, str], Row] = {}
    rows: Counter[tuple[str, str]] = Counter()
    with path.open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            if entry["reason"] in _NOT_SHOWN:
                continue
            key = (entry["source"], entry["reason"])
            rows[key] += 1
            first.setdefault(key, {"first": entry["row"], "what of it": entry["detail"]})
    return [
        {"source": key[0], "reason": key[1], "rows": rows[key], **row} for key, row in first.items()
    ]
