"""Whether a node's result stands, and if not, why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdpo.errors import IntegrityError
from sdpo.identity.canonical import digest_of
from sdpo.identity.differences import differences
from sdpo.store.run_folder import Record, RunFolder

NOT_DONE = "not done yet"
"""Why a node without a record has to be done."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """Whether a node's result stands, and if not, why."""

    record: Record | None
    reason: str


Explain = Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]
"""Names the differences of two identities, the old one first."""


def reuse(
    run: RunFolder, node: str, identity: Mapping[str, Any], *, explain: Explain | None = None
) -> Reuse:
    """A complete record with the same identity whose files verify; anything else says why."""
    found = matching(run, node, identity, explain=explain)
    damage = run.damage(found.record) if found.record else []
    return Reuse(None, "; ".join(damage)) if damage else found


def matching(
    run: RunFolder, node: str, identity: Mapping[str, Any], *, explain: Explain | None = None
) -> Reuse:
    """As :func:`reuse`, without a look at the files."""
    try:
        record = run.read_record(node)
    except IntegrityError as error:
        return Reuse(None, str(error))
    if record is None:
        return Reuse(None, NOT_DONE)
    if digest_of(record["identity"]) != digest_of(dict(identity)):
        explain = explain or differences
        return Reuse(None, "; ".join(explain(record["identity"], identity)))
    return Reuse(record, "")
