"""Choose the reserved prompts that every model is asked to complete."""

from typing import TypedDict

import pyarrow as pa


class ReservedRow(TypedDict):
    """A reserved row has those columns of the plan that are read here."""

    pair_id: str
    prompt_key: str
    source: str
    token_row: int


def reserved_rows(plan: pa.Table, *, count: int) -> list[ReservedRow]:
    """Return the plan's rows of ``count`` reserved prompts, each once, the sources taking turns.

    Prompts come in the order of their pairs' ids; fewer are returned where the reserve has fewer.
    """
    held = plan.filter(pa.array(plan["step"].to_numpy() == 0))
    reserve: list[ReservedRow] = held.to_pylist()
    reserve.sort(key=lambda row: str(row["pair_id"]))
    by_source: dict[str, list[ReservedRow]] = {}
    seen: set[str] = set()
    for row in reserve:
        if row["prompt_key"] not in seen:
            seen.add(row["prompt_key"])
            by_source.setdefault(row["source"], []).append(row)
    queues = [by_source[name] for name in sorted(by_source)]
    picked: list[ReservedRow] = []
    while len(picked) < count and any(queues):
        for queue in queues:
            if queue and len(picked) < count:
                picked.append(queue.pop(0))
    return picked
