"""Tell which rows are not used and why, with the first of each kind."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from flows.show.console import Row
from sdpo.data.collect import NOT_DRAWN
from sdpo.data.readers import numbered


def rejected_rows(path: Path, sources: Mapping[str, str]) -> list[Row]:
    """Return a row per source and reason in ``rejected_rows.jsonl``: how many, and the first.

    ``sources`` has the sources' paths by their names, by which a row's number is told as what it
    is: a line of a text file, else a row counted from 0. Rows that were only not drawn are left
    out.
    """
    first: dict[tuple[str, str], Row] = {}
    rows: Counter[tuple[str, str]] = Counter()
    with path.open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            if entry["reason"] in NOT_DRAWN:
                continue
            key = (entry["source"], entry["reason"])
            rows[key] += 1
            first_at = numbered(sources.get(entry["source"], ""), entry["row"])
            first.setdefault(key, {"first": first_at, "what of it": entry["detail"]})
    return [
        {"source": key[0], "reason": key[1], "rows": rows[key], **row} for key, row in first.items()
    ]
