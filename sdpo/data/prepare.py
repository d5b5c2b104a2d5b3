"""From the recipe's sources to ``pairs.parquet`` and ``rejected_rows.jsonl``.

Rows are read once, normalised and written to a scratch file; which of them are repeated or
contradicted is decided on their keys; a second pass over the scratch file writes the pairs that
stay. Memory does not grow with the texts. Every row is either a pair or a line of
``rejected_rows.jsonl``.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sdpo.config import DataConfig, SourceConfig
from sdpo.data.duplicates import (
    CONTRADICTORY,
    DUPLICATE,
    KEPT,
    LIMIT,
    MAX_PAIRS,
    WEIGHT,
    Decisions,
    KeyTable,
)
from sdpo.data.formats import NOTES, Candidate, Note, PairNormaliser
from sdpo.data.keys import content_digest, pair_keys
from sdpo.data.pairs_file import BatchWriter, iter_row_groups
from sdpo.data.prompts import Rejection
from sdpo.data.readers import default_name, place, read_rows
from sdpo.data.schema import PAIRS_SCHEMA, Format, Message
from sdpo.data.template_inputs import COLUMNS
from sdpo.errors import ConfigError, DataError
from sdpo.layouts import Reader, reader_of
from sdpo.system.files import publish_file, temporary_folder

Progress = Callable[[str, int, int | None], None]
"""Called with a source's name, the rows read of it, and how many it has (None: not known yet)."""

_PROGRESS_ROWS = 1000
_REASONS = {
    DUPLICATE: "duplicate",
    CONTRADICTORY: "contradictory",
    MAX_PAIRS: "max_pairs",
    LIMIT: "limit",
    WEIGHT: "weight",
}
_SCRATCH_SCHEMA = PAIRS_SCHEMA.append(pa.field("content", pa.binary(16)))


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """What became of one source's rows.

    ``layout`` names the columns its pairs were read from; ``rejected`` counts rows by reason;
    ``notes`` are sentences on rows that are used and may not be what they seem.
    """

    name: str
    format: Format
    layout: str
    read: int
    kept: int
    rejected: dict[str, int]
    unused_columns: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PreparedPairs:
    """The pairs of a run and what is to be known of them.

    ``digest`` is the sha256 over the pairs' exact content in order, whatever the file's bytes.
    ``repeated_prompt_share`` is the share of pairs whose prompt an earlier pair has already.
    """

    path: Path
    rejected_path: Path
    sources: tuple[SourceCounts, ...]
    pairs: int
    digest: str
    repeated_prompt_share: float


def prepare_pairs(
    data: DataConfig,
    *,
    default_format: Format,
    strata: Sequence[str],
    out: Path,
    on_progress: Progress | None = None,
) -> PreparedPairs:
    """Read all sources and publish ``pairs.parquet`` and ``rejected_rows.jsonl`` in ``out``.

    ``default_format`` is what `auto` means: `chat` where the tokenizer has a template. ``strata``
    are dotted paths whose values the pairs carry along; ``source`` among them is no column.
    Sources' paths are absolute or hub names.

    Raises:
        ConfigError: no source, or two of the same name.
        DataError: a source that cannot be read, or of which nothing is left. Nothing is published.
    """
    names = source_names(data.sources)
    out.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out) as scratch:
        collected = _Collected(scratch, data, strata=[s for s in strata if s != "source"])
        with collected:
            for name, source in zip(names, data.sources, strict=True):
                collected.read(name, source, default_format, on_progress)
        decisions = collected.keys.decide(
            max_pairs=[source.max_pairs for source in data.sources],
            limit=data.limit,
            weights=[source.weight for source in data.sources],
        )
        counts = collected.counts(decisions)
        digest = _publish(collected, decisions, out)
    kept = sum(count.kept for count in counts)
    return PreparedPairs(
        path=out / "pairs.parquet",
        rejected_path=out / "rejected_rows.jsonl",
        sources=counts,
        pairs=kept,
        digest=digest,
        repeated_prompt_share=decisions.repeated_prompts / kept,
    )


def source_names(sources: Sequence[SourceConfig]) -> list[str]:
    """The sources' names: as given, or those of their files or data sets.

    Raises:
        ConfigError: no source, one without a path, or two of the same name.
    """
    if not sources:
        raise ConfigError("data.sources is empty: name at least one source of preference pairs")
    names = []
    for index, source in enumerate(sources):
        if not source.path:
            raise ConfigError(f"data.sources[{index}] has no path")
        names.append(source.name or default_name(source.path))
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ConfigError(f"two sources are called `{repeated[0]}`: give each a `name` of its own")
    return names


class _Collected:
    """The first pass: all pairs in a scratch file, all rejected rows in another, keys in memory."""

    def __init__(self, scratch: Path, data: DataConfig, *, strata: list[str]):
        self.pairs_path = scratch / "pairs.parquet"
        self.rejected_path = scratch / "rejected.jsonl"
        self.keys = KeyTable()
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

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)
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

    def _add(self, number: int, row: dict[str, Any]) -> None:
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
        """Keep what was made of a row; returns whether it is a pair."""
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

    def _read_layout(self, row: dict[str, Any]) -> dict[str, Any] | Rejection:
        """A row as its source's layout reads it, with the columns of the strata and of what the
        template gets."""
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
        """What became of each source's rows.

        Raises:
            DataError: nothing is left of a source.
        """
        return tuple(self._counts_of(source, decisions) for source in range(len(self.names)))

    def _counts_of(self, source: int, decisions: Decisions) -> SourceCounts:
        made = Counter(decisions.decision[self.keys.span(source)].tolist())
        kept = made.pop(KEPT, 0)
        if not kept and made[WEIGHT]:
            raise self._nothing_drawn(source, made[WEIGHT])
        later = {_REASONS[decision]: count for decision, count in made.items()}
        rejected = dict(sorted((self._rejected[source] + Counter(later)).items()))
        if not kept:
            reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.items())
            most = max(rejected, key=lambda reason: rejected[reason], default="")
            first = self._first[source].get(most, "")
            raise DataError(
                f"source `{self.names[source]}` ({self._data.sources[source].path}) is empty after "
                f"filtering: of {self._read[source]} rows none is left ({reasons})"
                + (f". The first that is {most}: {first}" if first else "")
            )
        normaliser = self._normalisers[source]
        return SourceCounts(
            name=self.names[source],
            format=self._formats[source],
            layout=normaliser.layout.name if normaliser.layout else "",
            read=self._read[source],
            kept=kept,
            rejected=rejected,
            unused_columns=normaliser.unused_columns(),
            notes=tuple(
                f"{count} rows of source `{self.names[source]}`, the first being number {first}: "
                f"{NOTES[note]}"
                for note, (count, first) in self._notes[source].items()
            ),
        )

    def _nothing_drawn(self, source: int, pairs: int) -> DataError:
        weights = ", ".join(
            f"{name} {each.weight:g}"
            for name, each in zip(self.names, self._data.sources, strict=True)
            if each.weight
        )
        return DataError(
            f"source `{self.names[source]}`: its weight draws none of its {pairs} pairs, as "
            f"another source is short of pairs for these weights ({weights}): raise its weight, or "
            "leave the short one without"
        )

    def rejections(self, decisions: Decisions) -> Iterator[str]:
        """The lines of ``rejected_rows.jsonl``, by source and row."""
        with self.rejected_path.open(encoding="utf-8", newline="\n") as early:
            for _, _, line in heapq.merge(map(_early, early), self._late(decisions)):
                yield line

    def _late(self, decisions: Decisions) -> Iterator[tuple[int, int, str]]:
        for index in (decisions.decision != KEPT).nonzero()[0].tolist():
            decision, other = int(decisions.decision[index]), int(decisions.other[index])
            source, row = self.keys.source(index), self.keys.row(index)
            rejection = Rejection(
                _REASONS[decision], self._detail(decision, source, other, decisions)
            )
            yield source, row, rejection_line(self.names[source], row, rejection)

    def _detail(self, decision: int, source: int, other: int, decisions: Decisions) -> str:
        if decision in (DUPLICATE, CONTRADICTORY):
            where = f"row {self.keys.row(other)} of `{self.names[self.keys.source(other)]}`"
            if decision == DUPLICATE:
                return f"the same pair as {where}"
            return f"the same pair with its sides swapped is {where}"
        if decision == WEIGHT:
            weight = self._data.sources[source].weight
            return f"not among the {decisions.mixed[source]} pairs drawn for weight {weight:g}"
        if decision == LIMIT:
            return f"not among the {self._data.limit} pairs drawn for data.limit"
        return f"not among the {self._data.sources[source].max_pairs} pairs drawn for max_pairs"


def rejection_line(source: str, row: int, rejection: Rejection) -> str:
    """One line of the list of rejected rows."""
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


def _publish(collected: _Collected, decisions: Decisions, out: Path) -> str:
    """Write both files; ``pairs.parquet`` takes its name last. Returns the digest of the pairs."""
    digest = hashlib.sha256()
    with publish_file(out / "pairs.parquet") as pairs:
        with publish_file(out / "rejected_rows.jsonl") as rejected, rejected.open("wb") as file:
            file.writelines(line.encode() for line in collected.rejections(decisions))
        with BatchWriter(pairs, PAIRS_SCHEMA) as writer:
            start = 0
            for group in iter_row_groups(collected.pairs_path):
                keep = decisions.decision[start : start + group.num_rows] == KEPT
                start += group.num_rows
                kept = group.filter(pa.array(keep))
                digest.update(b"".join(kept.column("content").to_pylist()))
                writer.add_table(kept.select(PAIRS_SCHEMA.names))
    return digest.hexdigest()
