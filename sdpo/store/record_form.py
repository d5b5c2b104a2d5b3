"""Check that a file can be the record of a node, before its fields are looked at.

A digest beside a record says that nobody has changed it since, and not that it is the record of
this node: one of another step has a digest that fits too, and so has whatever somebody else wrote
into a run that they hand on.
"""

from pathlib import PurePosixPath


def form_fault(node: str, record: object) -> str:
    """Return why ``record``, as it was read, cannot be that of ``node``; "" where it can."""
    if not isinstance(record, dict):
        return "it is not a mapping"
    if (named := _node_of(record, node)) != node:
        return f"it is the record of {named}"
    outside = next((name for name in record.get("files") or () if not _is_inside(str(name))), "")
    return f"it names a file outside of the run, {outside!r}" if outside else ""


def _node_of(record: dict[str, object], node: str) -> str:
    """Return the node that a record says it is of; ``node`` where it does not say."""
    if isinstance(record.get("step"), int):
        kind = "guide" if str(record.get("name", "")).startswith("guide-") else "step"
        return f"{kind}-{record['step']}"
    return str(record.get("node", node))


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name
