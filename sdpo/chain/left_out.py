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
"""A larger share of the rows than this warns; a smaller one is a note."""


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
    reasons: Counter[str] = Counter()
    for counts in (*(source.rejected for source in data.sources), *outputs.unusable.values()):
        reasons.update(counts)
    read = sum(source.read for source in data.sources)
    made = sum(source.kept + sum(source.rejected.values()) for source in data.sources)
    # A row with a list of answers makes several pairs.
    of = f"{made} {'rows' if made == read else 'pairs'}"
    _tell_reasons(context, reasons, of, usable=outputs.usable, listed=context.run.rejected.name)
    if examples := data.supervised:
        _tell_reasons(
            context,
            examples.rejected,
            f"{examples.read} supervised rows",
            usable=examples.kept,
            listed="rejected_supervised_rows.jsonl",
        )


def _tell_reasons(
    context: Context, reasons: Mapping[str, int], of: str, *, usable: int, listed: str
) -> None:
    left = {reason: count for reason, count in reasons.items() if reason not in NOT_DRAWN}
    total = sum(left.values())
    if not total:
        return
    told = ", ".join(f"{reason} {count}" for reason, count in sorted(left.items()))
    message = (
        f"{total} of {of} {be(total)} left out ({told}): {context.run.path / listed} lists them"
    )
    is_large = total > _LARGE * (total + usable)
    context.listen((WarningEvent if is_large else NoteEvent)(message=message))
