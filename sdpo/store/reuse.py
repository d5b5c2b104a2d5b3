"""Decide whether a node's result stands, and if not, why."""

from collections.abc import Callable
from dataclasses import dataclass

from sdpo.errors import IntegrityError
from sdpo.identity.differences import differences
from sdpo.identity.ranks import same_result
from sdpo.store.records import NodeRecord
from sdpo.store.run_folder import RunFolder
from sdpo.system.json_values import JsonObject

NOT_DONE = "not done yet"
"""A node without a record has to be done for this reason."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """The result of a node stands with a ``record``, or does not for a ``reason``."""

    record: NodeRecord | None
    reason: str


Explain = Callable[[JsonObject, JsonObject], list[str]]
"""It names the differences of two identities, the old one first."""


def reuse(
    run: RunFolder, node: str, identity: JsonObject, *, explain: Explain | None = None
) -> Reuse:
    """Return a complete record with the same identity whose files verify, or why there is none."""
    found = matching(run, node, identity, explain=explain)
    damage = run.damage(found.record) if found.record else []
    return Reuse(None, "; ".join(damage)) if damage else found


def matching(
    run: RunFolder, node: str, identity: JsonObject, *, explain: Explain | None = None
) -> Reuse:
    """Decide as :func:`reuse` does, without a look at the files."""
    try:
        record = run.find(node)
    except IntegrityError as error:
        return Reuse(None, str(error))
    if record is None:
        return Reuse(None, NOT_DONE)
    if not same_result(record.identity, identity):
        explain = explain or differences
        return Reuse(None, "; ".join(explain(record.identity, identity)))
    return Reuse(record, "")
