"""Read all sources once: their pairs to a scratch file, their keys and counts to memory."""

import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from sdpo.config import DataConfig, SourceConfig
from sdpo.data.duplicates import (
    CONTRADICTORY,
    DUPLICATE,
    KEPT,
    LIMIT,
    MAX_PAIRS,
    UNFIT,
    WEIGHT,
    Decisions,
    KeyTable,
)
from sdpo.data.formats import Candidate, PairNormaliser
from sdpo.data.keys import content_digest, pair_keys
from sdpo.data.notes import NOTES, Note
from sdpo.data.pairs_file import BatchWriter
from sdpo.data.prompts import Rejection
from sdpo.data.readers import numbered, place, read_rows
from sdpo.data.schema import PAIRS_SCHEMA, Format, Message
from sdpo.data.template_inputs import COLUMNS
from sdpo.errors import DataError
from sdpo.layouts import Reader, reader_of
from sdpo.system.json_values import Cell
from sdpo.system.words import counted

Progress = Callable[[str, int, int | None], None]
"""It is called with a source's name, the rows read, and how many there are (None: unknown)."""

_PROGRESS_ROWS = 1000
_SHOWN = 3
"""So many rows of a source of which nothing is left are named."""
_REASONS = {
    DUPLICATE: "duplicate",
    CONTRADICTORY: "contradictory",
    MAX_PAIRS: "max_pairs",
    LIMIT: "limit",
    WEIGHT: "weight",
}
NOT_DRAWN = tuple(_REASONS[decision] for decision in (LIMIT, MAX_PAIRS, WEIGHT))
"""Rows with these reasons were not drawn: there is nothing to mend."""
_SCRATCH_SCHEMA = PAIRS_SCHEMA.append(pa.field("content", pa.binary(16)))


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """Counts say what became of one source's rows.

    ``layout`` names the columns that its pairs were read from; ``rejected`` counts rows by reason;
    ``notes`` are sentences on rows that are used but may not be what they seem, and on draws.
    """

    name: str
    format: Format
    layout: str
    read: int
    kept: int
    rejected: dict[str, int]
    unused_columns: tuple[str, ...]
    notes: tuple[str, ...]


class Collected:
    """The first pass writes pairs and rejected rows to scratch files, and keeps keys in memory."""

    def __init__(self, scratch: Path, data: DataConfig, *, strata: list[str]):
        self.pairs_path = scratch / "pairs.parquet"
        self.rejected_path = scratch / "rejected.jsonl"
        self.keys = KeyTable()
        self.unfit: dict[int, Rejection] = {}
        """These pairs, by index, are known to have tokens that cannot be used, and why."""
        self.names: list[str] = []
        self._data = data
        self._strata = strata
        self._normalisers: list[PairNormaliser] = []
        self._reader: Reader | None = None
        self._formats: list[Format] = []
        self._read: list[int] = []
        self._rejected: list[Counter[str]] = []
        self._first: list[dict[str, str]] = []
        self._notes: list[dict[Note, list[int]]] = []

    def __enter__(self) -> None:
        self._writer = BatchWriter(self.pairs_path, _SCRATCH_SCHEMA)
        self._rejections = self.rejected_path.open("w", encoding="utf-8")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, traceback)
        self._rejections.close()

    def read(
        self, name: str, source: SourceConfig, default: Format, on_progress: Progress | None
    ) -> None:
        """Read one source to its end."""
        format_: Format = default if source.format == "auto" else source.format
        normaliser = PairNormaliser(
            format=format_,
            columns=source.columns,
            strata=self._strata,
            contradictions=source.contradictions,
            ranked_by=source.ranked_by,
            pairing=source.pairing,
            min_score_gap=source.min_score_gap,
            seed=self._data.seed,
            variables=source.chat_template_kwargs,
        )
        self._reader = reader_of(source.layout) if source.layout else None
        self.names.append(name)
        self._normalisers.append(normaliser)
        self._formats.append(format_)
        self._read.append(0)
        self._rejected.append(Counter())
        self._first.append({})
        self._notes.append({})
        self.keys.start_source(draws=bool(source.max_pairs or self._data.limit or source.weight))
        rows = read_rows(
            source.path, split=source.split, subset=source.subset, revision=source.revision
        )
        count = 0
        for count, (number, row) in enumerate(rows, start=1):
            try:
                self._add(number, row)
            except DataError as error:
                where = place(source.path, number)
                raise DataError(f"source `{name}` ({where}): {error}") from error
            if on_progress and count % _PROGRESS_ROWS == 0:
                on_progress(name, count, None)
        self._read[-1] = count
        if on_progress:
            on_progress(name, count, count)
        try:
            normaliser.finish()
        except DataError as error:
            raise DataError(f"source `{name}` ({source.path}): {error}") from error

    def _add(self, number: int, row: dict[str, Cell]) -> None:
        normaliser = self._normalisers[-1]
        read = self._read_layout(row)
        if isinstance(read, Rejection):
            self._reject(number, read)
            return
        candidates = normaliser.convert(read)
        strata = normaliser.strata_of(read) if self._strata else {}
        are_written = [self._add_made(number, made, strata) for made in candidates]
        if any(are_written):
            for note in normaliser.notes:
                # The count, and the first row.
                self._notes[-1].setdefault(note, [0, number])[0] += 1

    def _add_made(self, number: int, made: Candidate | Rejection, strata: dict[str, str]) -> bool:
        """Keep what was made of a row; return whether it is a pair."""
        if isinstance(made, Candidate):
            try:
                self._write(number, made, strata)
                return True
            except UnicodeEncodeError:
                made = Rejection("not_text", "the text holds half of a surrogate pair")
        self._reject(number, made)
        return False

    def _reject(self, number: int, made: Rejection) -> None:
        self._rejected[-1][made.reason] += 1
        place_ = place(self._data.sources[len(self.names) - 1].path, number)
        self._first[-1].setdefault(made.reason, f"{place_}: {made.detail}")
        source = len(self.names) - 1
        line = rejection_line(self.names[-1], number, made)
        self._rejections.write(f"{source}\t{number}\t{line}")

    def _read_layout(self, row: dict[str, Cell]) -> dict[str, Cell] | Rejection:
        """Return a row as its source's layout reads it, or why it is no pair.

        The columns of the strata and of what the template gets are kept beside.
        """
        if self._reader is None:
            return row
        made = self._reader(row)
        if isinstance(made, str):
            return Rejection("not_a_pair", made)
        kept = {*COLUMNS, *(path.split(".")[0] for path in self._strata)} & row.keys()
        return {name: row[name] for name in kept} | dict(made)

    def _write(self, number: int, pair: Candidate, strata: dict[str, str]) -> None:
        keys = pair_keys(
            pair.prompt,
            chosen=pair.chosen,
            rejected=pair.rejected,
            template_inputs=pair.template_inputs,
        )
        content = _content(self.names[-1], self._formats[-1], pair, strata)
        prompt_chars, chosen_chars = _chars(pair.prompt), _chars(pair.chosen)
        rejected_chars = _chars(pair.rejected)
        row = (
            keys.pair.hex(),
            keys.prompt.hex(),
            self.names[-1],
            number,
            self._formats[-1],
            pair.prompt,
            pair.chosen,
            pair.rejected,
            pair.chosen_score,
            pair.rejected_score,
            tuple(strata.items()),
            chosen_chars,
            rejected_chars,
            prompt_chars,
            pair.template_inputs or None,
            content,
        )
        self._writer.add(row, chars=prompt_chars + chosen_chars + rejected_chars)
        self.keys.add(keys, row=number, seed=self._data.seed)

    def counts(self, decisions: Decisions) -> tuple[SourceCounts, ...]:
        """Return what became of each source's rows.

        Raises:
            DataError: nothing is left of a source.
        """
        return tuple(self._counts_of(source, decisions) for source in range(len(self.names)))

    def _counts_of(self, source: int, decisions: Decisions) -> SourceCounts:
        span = self.keys.span(source)
        made = Counter(decisions.decision[span].tolist())
        kept, unfit = made.pop(KEPT, 0), made.pop(UNFIT, 0)
        if not kept and made[WEIGHT]:
            raise self._nothing_drawn(source, made[WEIGHT])
        later = Counter({_REASONS[decision]: count for decision, count in made.items()})
        if unfit:
            skipped = span.start + np.flatnonzero(decisions.decision[span] == UNFIT)
            for index in skipped.tolist():
                found = self.unfit[index]
                later[found.reason] += 1
                place_ = place(self._data.sources[source].path, self.keys.row(index))
                self._first[source].setdefault(found.reason, f"{place_}: {found.detail}")
        rejected = dict(sorted((self._rejected[source] + later).items()))
        if not kept:
            raise self._nothing_left(source, rejected, decisions)
        normaliser = self._normalisers[source]
        return SourceCounts(
            name=self.names[source],
            format=self._formats[source],
            layout=normaliser.layout.name if normaliser.layout else "",
            read=self._read[source],
            kept=kept,
            rejected=rejected,
            unused_columns=normaliser.unused_columns(),
            notes=tuple(self._notes_of(source, kept, unfit)),
        )

    def _notes_of(self, source: int, kept: int, unfit: int) -> Iterator[str]:
        name, limit = self.names[source], self._data.limit
        for note, (count, first) in self._notes[source].items():
            row = numbered(self._data.sources[source].path, first)
            rows = counted(count, "row")
            yield f"{rows} of source `{name}`, the first being {row}: {NOTES[note]}"
        if unfit:
            left = "" if kept >= limit else f", and has {kept} others"
            yield (
                f"source `{name}`: data.limit {limit} passes over {counted(unfit, 'pair')} that "
                f"cannot be used{left}"
            )

    def _nothing_left(
        self, source: int, rejected: Mapping[str, int], decisions: Decisions
    ) -> DataError:
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.items())
        most = max(rejected, key=lambda reason: rejected[reason], default="")
        path = self._data.sources[source].path
        if first := self._first[source].get(most, ""):
            first = (
                f". The first that is {most}: {first}. Mend the file or the source's settings, or "
                "take the source out of the recipe"
            )
        elif later := self._first_later(source, most, decisions):
            more = f"; and {rejected[most] - len(later)} more" * (rejected[most] > len(later))
            first = (
                f". The first that are {most}: {'; '.join(later)}{more}. Take them out of one of "
                "the files, or take the source out of the recipe"
            )
        return DataError(
            f"source `{self.names[source]}` ({path}) is empty after filtering: of "
            f"{self._read[source]} rows none is left ({reasons}){first}"
        )

    def _first_later(self, source: int, reason: str, decisions: Decisions) -> list[str]:
        """Return the first rows of a source that are left out since another pair is as it is."""
        of_others = [d for d in (DUPLICATE, CONTRADICTORY) if _REASONS[d] == reason]
        span = self.keys.span(source)
        at = span.start + np.flatnonzero(np.isin(decisions.decision[span], of_others))[:_SHOWN]
        return [
            f"{numbered(self._data.sources[source].path, self.keys.row(index))}, "
            f"{self._detail(int(decisions.decision[index]), source, other, decisions)}"
            for index in at.tolist()
            for other in [int(decisions.other[index])]
        ]

    def _nothing_drawn(self, source: int, pairs: int) -> DataError:
        weights = ", ".join(
            f"{name} {each.weight:g}"
            for name, each in zip(self.names, self._data.sources, strict=True)
            if each.weight
        )
        return DataError(
            f"source `{self.names[source]}`: its weight draws none of its "
            f"{counted(pairs, 'pair')}, as another source is short of pairs for these weights "
            f"({weights}): raise its weight, or leave the short one without"
        )

    def rejections(self, decisions: Decisions) -> Iterator[str]:
        """Yield the lines of ``rejected_rows.jsonl``, by source and row."""
        with self.rejected_path.open(encoding="utf-8", newline="\n") as early:
            for _, _, line in heapq.merge(map(_early, early), self._late(decisions)):
                yield line

    def _late(self, decisions: Decisions) -> Iterator[tuple[int, int, str]]:
        for index in (decisions.decision != KEPT).nonzero()[0].tolist():
            decision, other = int(decisions.decision[index]), int(decisions.other[index])
            source, row = self.keys.source(index), self.keys.row(index)
            rejection = (
                self.unfit[index]
                if decision == UNFIT
                else Rejection(_REASONS[decision], self._detail(decision, source, other, decisions))
            )
            yield source, row, rejection_line(self.names[source], row, rejection)

    def _detail(self, decision: int, source: int, other: int, decisions: Decisions) -> str:
        if decision in (DUPLICATE, CONTRADICTORY):
            theirs = self.keys.source(other)
            row = numbered(self._data.sources[theirs].path, self.keys.row(other))
            where = f"{row} of `{self.names[theirs]}`"
            if decision == DUPLICATE:
                return f"the same pair as {where}"
            return f"the same pair with its sides swapped is {where}"
        if decision == WEIGHT:
            drawn = counted(decisions.mixed[source], "pair")
            return f"not among the {drawn} drawn for weight {self._data.sources[source].weight:g}"
        if decision == LIMIT:
            return f"not among the {counted(self._data.limit, 'pair')} drawn for data.limit"
        most = self._data.sources[source].max_pairs
        return f"not among the {counted(most, 'pair')} drawn for max_pairs"


def rejection_line(source: str, row: int, rejection: Rejection) -> str:
    """Return one line of the list of rejected rows, as JSON."""
    entry = {
        "source": source,
        "row": row,
        "reason": rejection.reason,
        "detail": rejection.detail,
    }
    text = json.dumps(entry, ensure_ascii=False)
    # A lone surrogate cannot be encoded; as an escape it is the same JSON.
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def _early(line: str) -> tuple[int, int, str]:
    source, row, text = line.split("\t", 2)
    return int(source), int(row), text


def _content(source: str, format_: Format, pair: Candidate, strata: dict[str, str]) -> bytes:
    counts = f"{len(pair.prompt)},{len(pair.chosen)},{len(pair.rejected)}"
    strings = [source, format_, repr(pair.chosen_score), repr(pair.rejected_score), counts]
    for message in (*pair.prompt, *pair.chosen, *pair.rejected):
        strings += message.strings()
    for item in strata.items():
        strings += item
    strings += [pair.template_inputs] if pair.template_inputs else []
    return content_digest(strings)


def _chars(messages: list[Message]) -> int:
    return sum([len(message.content) + len(message.rest) for message in messages])
