"""Tell how many rows of the data are left out, and why, once they are all known."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from sdpo.chain.context import Context
from sdpo.chain.node import Find, Made, Node
from sdpo.data.collect import NOT_DRAWN
from sdpo.events import NoteEvent, WarningEvent
from sdpo.store.records import DataOutputs, ReserveOutputs
from sdpo.system.words import be

_LARGE = 0.1
"""A larger share than this, of what was read or of what was drawn, warns; else it is a note."""


def telling_left_out(context: Context, reserve: Node) -> Node:
    """Return the node of the reserve, which then tells how many rows its list of them holds.

    It is told where the node is made: a call that finds it done says nothing. Rows that were not
    drawn (``data.limit``, ``max_pairs``, ``weight``) are not counted, as nothing is wrong there.
    """

    def make(find: Find) -> Made | None:
        made = reserve.make(find)
        if made is not None:
            _tell(context, ReserveOutputs.model_validate(made.outputs))
        return made

    return replace(reserve, make=make)


def _tell(context: Context, outputs: ReserveOutputs) -> None:
    data = context.run.record("data").read_outputs(DataOutputs)
    rejected, unusable = Counter[str](), Counter[str]()
    for source in data.sources:
        rejected.update(_wrong(source.rejected))
    for counts in outputs.unusable.values():
        unusable.update(_wrong(counts))
    read = sum(source.read for source in data.sources)
    made = sum(source.kept + sum(source.rejected.values()) for source in data.sources)
    # A row with a list of answers makes several pairs.
    of = f"{made} {'rows' if made == read else 'pairs'}"
    # All rows are looked at before any is drawn; whether one can be used is known of those drawn.
    tokenised = unusable.total()
    is_large = rejected.total() > _LARGE * made or tokenised > _LARGE * (tokenised + outputs.usable)
    reasons, listed = rejected + unusable, context.run.rejected.name
    _tell_reasons(context, reasons, of, is_large=is_large, listed=listed)
    if examples := data.supervised:
        reasons, listed = _wrong(examples.rejected), "rejected_supervised_rows.jsonl"
        of, is_large = f"{examples.read} supervised rows", reasons.total() > _LARGE * examples.read
        _tell_reasons(context, reasons, of, is_large=is_large, listed=listed)


def _wrong(reasons: Mapping[str, int]) -> Counter[str]:
    """Return the reasons with which something is wrong, and how many rows have each."""
    return Counter({reason: n for reason, n in reasons.items() if reason not in NOT_DRAWN})


def _tell_reasons(
    context: Context, reasons: Counter[str], of: str, *, is_large: bool, listed: str
) -> None:
    if not (total := reasons.total()):
        return
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    message = (
        f"{total} of {of} {be(total)} left out ({told}): {context.run.path / listed} lists them"
    )
    context.listen((WarningEvent if is_large else NoteEvent)(message=message))
