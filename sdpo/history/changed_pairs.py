"""Tell which pairs of a source differ in two runs, in what, and which steps trained on them."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sdpo.data.pairs_file import iter_pairs, pair_from_row
from sdpo.data.schema import Message, Pair
from sdpo.store.run_folder import RunFolder

_SHOWN_CHARS = 60
_BEFORE = 15
"""So many characters stand before the first that differs."""
_PLACE = ("pair_id", "prompt_key", "source", "row")
"""These fields of a pair say where it stands, or follow from the others."""


class _Known(NamedTuple):
    """A pair is known by its id; ``content`` is the digest of all of it but where it stands."""

    row: int
    prompt_key: str
    content: bytes


class _Both(NamedTuple):
    """A pair of one run, by its id, and the one of the other run that stands for it; one may be
    None."""

    a: str | None
    b: str | None


@dataclass(frozen=True, slots=True)
class ChangedField:
    """A field of a pair differs: ``a`` and ``b`` are its values in short.

    Of a pair that only one run has ``name`` is `added` or `removed`, and the value its prompt.
    ``row`` is the pair's number in the source's file, that of the second run where it has the pair.
    ``steps`` are those that train on it there; none where it is reserved or cannot be used.
    """

    row: int
    name: str
    a: str | None
    b: str | None
    steps: tuple[int, ...]
    is_reserved: bool


@dataclass(frozen=True, slots=True)
class ChangedPairs:
    """So many pairs of a source were ``added``, ``removed`` or ``changed``, ``of`` so many of both.

    ``shown`` has the fields of the first ones.
    """

    added: int
    removed: int
    changed: int
    of: int
    shown: tuple[ChangedField, ...]

    @property
    def count(self) -> int:
        """Return how many pairs differ."""
        return self.added + self.removed + self.changed


def changed_pairs(a: RunFolder, b: RunFolder, source: str, *, most: int) -> ChangedPairs:
    """Compare the pairs of ``source`` in two runs whose ``pairs.parquet`` was checked already.

    A pair that only one run has stands for one of the other with its prompt, or else in its row:
    then it was changed. ``most``: so many pairs are shown, in the order of their rows.
    """
    left, right = _known(a, source), _known(b, source)
    both = sorted(_matched(left, right), key=lambda pair: _row_of(pair, left, right))
    first = both[:most]
    sides = (
        _pairs(a, {pair.a for pair in first if pair.a}, source),
        _pairs(b, {pair.b for pair in first if pair.b}, source),
    )
    steps = (_steps_of(a, sides[0]), _steps_of(b, sides[1]))
    shown = [changed for pair in first for changed in _fields(pair, sides, steps)]
    return ChangedPairs(
        added=sum(pair.a is None for pair in both),
        removed=sum(pair.b is None for pair in both),
        changed=sum(None not in pair for pair in both),
        of=max(len(left), len(right)),
        shown=tuple(shown),
    )


def _known(run: RunFolder, source: str) -> dict[str, _Known]:
    return {
        pair.pair_id: _Known(pair.row, pair.prompt_key, _content(pair))
        for pair in _of_source(run, source)
    }


def _of_source(run: RunFolder, source: str) -> Iterator[Pair]:
    for batch in iter_pairs(run.pairs):
        mine = batch.filter(pc.equal(batch["source"].cast("string"), source))
        yield from map(pair_from_row, mine.to_pylist())


def _content(pair: Pair) -> bytes:
    told = repr([getattr(pair, name) for name in _content_fields()])
    return hashlib.blake2b(told.encode("utf-8", "backslashreplace"), digest_size=16).digest()


def _content_fields() -> list[str]:
    return [field.name for field in fields(Pair) if field.name not in _PLACE]


def _matched(left: Mapping[str, _Known], right: Mapping[str, _Known]) -> Iterator[_Both]:
    """Yield the pairs that differ."""
    yield from (
        _Both(pair, pair)
        for pair in left.keys() & right.keys()
        if left[pair].content != right[pair].content
    )
    gone, new = (
        {pair: side[pair] for pair in sorted(side.keys() - other.keys())}
        for side, other in ((left, right), (right, left))
    )
    for place in ("prompt_key", "row"):
        places = {getattr(known, place): pair for pair, known in gone.items()}
        for pair, known in list(new.items()):
            if before := places.pop(getattr(known, place), None):
                del gone[before], new[pair]
                yield _Both(before, pair)
    yield from (_Both(pair, None) for pair in gone)
    yield from (_Both(None, pair) for pair in new)


def _row_of(pair: _Both, left: Mapping[str, _Known], right: Mapping[str, _Known]) -> int:
    return right[pair.b].row if pair.b else left[pair.a or ""].row


def _pairs(run: RunFolder, wanted: Collection[str], source: str) -> dict[str, Pair]:
    if not wanted:
        return {}
    return {pair.pair_id: pair for pair in _of_source(run, source) if pair.pair_id in wanted}


def _steps_of(run: RunFolder, wanted: Collection[str]) -> dict[str, list[int]]:
    """Return the steps of the plan that have each of these pairs; 0 is the reserve."""
    table = pq.read_table(run.plan, columns=["pair_id", "step"])
    found: dict[str, list[int]] = {pair: [] for pair in wanted}
    listed = pa.array(list(wanted), pa.string())
    for row in table.filter(pc.is_in(table["pair_id"], value_set=listed)).to_pylist():
        found[row["pair_id"]].append(row["step"])
    return found


def _fields(
    pair: _Both, sides: Sequence[Mapping[str, Pair]], steps: Sequence[Mapping[str, list[int]]]
) -> Iterator[ChangedField]:
    """Yield what differs in a pair; of one that only one run has, its prompt."""
    a, b = sides[0].get(pair.a or ""), sides[1].get(pair.b or "")
    there, planned = (b, steps[1]) if b else (a, steps[0])
    assert there is not None, "one of the two runs has it"
    trained = sorted(planned[there.pair_id])
    for name, was, is_ in _differing(a, b):
        yield ChangedField(
            row=there.row,
            name=name,
            a=was,
            b=is_,
            steps=tuple(step for step in trained if step > 0),
            is_reserved=0 in trained,
        )


def _differing(a: Pair | None, b: Pair | None) -> Iterator[tuple[str, str | None, str | None]]:
    if a is None or b is None:
        known = [_short(_text(side.prompt)) if side else None for side in (a, b)]
        yield "added" if a is None else "removed", known[0], known[1]
        return
    for name in _content_fields():
        was, is_ = _text(getattr(a, name)), _text(getattr(b, name))
        if was != is_:
            same = next(
                (i for i, (x, y) in enumerate(zip(was, is_, strict=False)) if x != y),
                min(len(was), len(is_)),
            )
            start = max(0, same - _BEFORE)
            yield name, _short(was, start), _short(is_, start)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        turns = [each for each in value if isinstance(each, Message)]
        of_turns = (f"{turn.role}: {turn.content} {turn.rest}".rstrip() for turn in turns)
        return turns[0].content if len(turns) == 1 and not turns[0].rest else " | ".join(of_turns)
    return "" if value is None else str(value)


def _short(text: str, start: int = 0) -> str:
    shown = " ".join(text[start : start + _SHOWN_CHARS].split())
    return f"{'…' * (start > 0)}{shown}{'…' * (len(text) > start + _SHOWN_CHARS)}"
