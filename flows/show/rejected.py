"""Which rows are not used and why, with the first of each kind."""

import json
from pathlib import Path
from typing import Any

_NOT_SHOWN = ("limit", "max_pairs", "weight")
"""Rows that were not drawn: there is nothing to mend."""


def rejected_rows(path: Path) -> list[dict[str, Any]]:
    """For a table: per source and reason the rows of ``rejected_rows.jsonl``, and the first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            if entry["reason"] in _NOT_SHOWN:
                continue
            key = (entry["source"], entry["reason"])
            first = {
                **dict(zip(("source", "reason"), key, strict=True)),
                **{"rows": 0, "first": entry["row"], "what of it": entry["detail"]},
            }
            found.setdefault(key, first)["rows"] += 1
    return list(found.values())
