"""Which reserved prompts every model is asked to complete."""

from typing import Any

import pyarrow as pa


def reserved_rows(plan: pa.Table, *, count: int) -> list[dict[str, Any]]:
    """The plan's rows of ``count`` reserved prompts, each once, the sources taking turns."""
    reserve = plan.filter(pa.array(plan["step"].to_numpy() == 0)).to_pylist()
    reserve.sort(key=lambda row: str(row["pair_id"]))
    by_source: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for row in reserve:
        if row["prompt_key"] not in seen:
            seen.add(row["prompt_key"])
            by_source.setdefault(row["source"], []).append(row)
    queues = [by_source[name] for name in sorted(by_source)]
    picked: list[dict[str, Any]] = []
    while len(picked) < count and any(queues):
        for queue in queues:
            if queue and len(picked) < count:
                picked.append(queue.pop(0))
    return picked
