"""Turn files of normalised text into files of token ids, batch by batch, on several cores.

The ids do not depend on how many processes share the work. A row that cannot be used stays in the
file with its reason and empty lists, so that nothing disappears. The file is Arrow IPC, written
beside its place and renamed; its schema metadata holds the settings, the facts about the tokenizer
and the report.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.identity.canonical import canonical_json
from sdpo.system.files import publish_file, temporary_folder
from sdpo.tokens.boundary import Cut, boundaries_of, cut, left_cut
from sdpo.tokens.forked import Message, Send, divide
from sdpo.tokens.ragged import Counts, Ragged
from sdpo.tokens.render import Row, describe
from sdpo.tokens.report import TokenReport
from sdpo.tokens.template import Encoded, Encoder
from sdpo.tokens.token_file import SUPERVISED_TOKENS_SCHEMA, TOKENS_SCHEMA

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
"""It is called with the rows done and the rows there are."""

_BATCH_ROWS = 500
INPUTS = "template_inputs"
"""Files have this column, except for older ones."""


def tokenise_pairs(
    pairs_path: Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    max_prompt_length: int = 0,
    clock: datetime,
    out: Path,
    end_token_ids: Sequence[int] = (),
    variables: Mapping[str, Any] = {},
    processes: int = 1,
    on_progress: Progress | None = None,
) -> TokenReport:
    """Publish the tokens of ``pairs.parquet`` at ``out``, in the same order.

    They are readable as :class:`~sdpo.tokens.token_file.TokenFile`. ``max_length`` is in tokens of
    prompt + completion, of which the start is kept; before that, a prompt of more than
    ``max_prompt_length`` tokens (0: of any length) keeps its end. ``clock`` is the present that
    chat templates see. ``end_token_ids``, ``variables``: see
    :class:`~sdpo.tokens.template.Encoder`. ``processes`` share the work, as far as there is enough
    of it.

    Raises:
        ModelError: there are conversations and no chat template, or the tokenizer or its template
            cannot be used. Nothing is published.
        Fault: a process ended before its work was done. Nothing is published.
    """
    encoder = Encoder(tokenizer, clock=clock, end_token_ids=end_token_ids, variables=variables)
    job = _Job(_PAIRS, encoder, max_length, max_prompt_length, pairs_path)
    return _publish(job, processes, clock=clock, out=out, on_progress=on_progress)


def tokenise_supervised(
    examples_path: Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    max_prompt_length: int = 0,
    clock: datetime,
    out: Path,
    end_token_ids: Sequence[int] = (),
    variables: Mapping[str, Any] = {},
    processes: int = 1,
    on_progress: Progress | None = None,
) -> TokenReport:
    """Publish the tokens of ``supervised.parquet`` likewise.

    They are readable as :class:`~sdpo.tokens.token_file.SupervisedTokenFile`.
    """
    encoder = Encoder(tokenizer, clock=clock, end_token_ids=end_token_ids, variables=variables)
    job = _Job(_SUPERVISED, encoder, max_length, max_prompt_length, examples_path)
    return _publish(job, processes, clock=clock, out=out, on_progress=on_progress)


@dataclass(frozen=True)
class _Kind:
    """A kind is what distinguishes pairs from supervised examples."""

    columns: tuple[str, ...]
    sides: tuple[str, ...]
    schema: pa.Schema
    arrays: Callable[[list[Row], Cut], list[pa.Array]]


@dataclass(frozen=True, slots=True)
class _Unit:
    """A unit is a run of rows read, encoded and written together, and reported by number."""

    number: int
    group: int
    start: int
    rows: int


@dataclass(slots=True)
class _Found:
    """This record counts what was found in some rows."""

    rows: int = 0
    moved_rows: int = 0
    most_moved: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    end_appended: int = 0

    def message(self) -> Message:
        """Return it as plain values, for :meth:`of`."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return {k: dict(v) if isinstance(v, dict) else v for k, v in plain.items()}

    @classmethod
    def of(cls, message: Message) -> "_Found":
        """Return what a worker sent as plain values."""
        counted = ("reasons", "truncated", "notes")
        return cls(**{k: Counter(v) if k in counted else v for k, v in message.items()})

    def add(self, other: "_Found") -> None:
        """Add what was found in the rows that come next."""
        self.rows += other.rows
        self.moved_rows += other.moved_rows
        self.most_moved = max(self.most_moved, other.most_moved)
        self.reasons += other.reasons
        self.truncated += other.truncated
        self.notes += other.notes
        self.examples = other.examples | self.examples
        self.end_appended += other.end_appended


@dataclass(frozen=True)
class _Job:
    """A job says how the rows of the file at ``path`` become ids."""

    kind: _Kind
    encoder: Encoder
    max_length: int
    max_prompt_length: int
    path: Path

    def units(self) -> list[_Unit]:
        """Return the file's rows in their order, in units."""
        found: list[_Unit] = []
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                for start in range(0, rows, _BATCH_ROWS):
                    size = min(_BATCH_ROWS, rows - start)
                    found.append(_Unit(len(found), group, start, size))
        return found

    def write(self, units: Sequence[_Unit], out: Path, send: Send) -> None:
        """Write a batch of ids for each of ``units``, and send what was found in it.

        Raises:
            ModelError: as :func:`tokenise_pairs`.
        """
        with pa.ipc.new_file(str(out), self.kind.schema) as writer:
            for unit, rows in self._read(units):
                batch, found = self._batch(rows)
                writer.write_batch(batch)
                send(unit.number, found.message())

    def report(self, found: _Found) -> TokenReport:
        """Return the report on what was found in all rows."""
        return TokenReport(
            rows=found.rows,
            usable=found.rows - found.reasons.total(),
            reasons=dict(sorted(found.reasons.items())),
            truncated={side: found.truncated[side] for side in self.kind.sides},
            moved_rows=found.moved_rows,
            most_moved_tokens=found.most_moved,
            end_tokens=self.encoder.end_tokens,
            end_appended=found.end_appended,
            notes=dict(sorted(found.notes.items())),
            examples=dict(sorted(found.examples.items())),
        )

    def _read(self, units: Sequence[_Unit]) -> Iterator[tuple[_Unit, list[Row]]]:
        with pq.ParquetFile(self.path) as file:
            there = file.schema_arrow.names
            columns = [name for name in self.kind.columns if name in there or name != INPUTS]
            for group, of_group in groupby(units, key=lambda unit: unit.group):
                # One thread: each thread keeps buffers of its own.
                table = file.read_row_group(group, columns=columns, use_threads=False)
                for unit in of_group:
                    yield unit, table.slice(unit.start, unit.rows).to_pylist()

    def _batch(self, rows: list[Row]) -> tuple[pa.RecordBatch, _Found]:
        sides = self.kind.sides
        encoded = self.encoder.encode(rows, sides)
        encoded, boundary = left_cut(
            encoded,
            boundaries_of(encoded),
            max_prompt_length=self.max_prompt_length,
            bos=self.encoder.tokenizer.bos_token_id,
        )
        result = cut(
            encoded,
            boundary=boundary,
            messages=[np.array([len(row[side]) for row in rows]) for side in sides],
            end_ids=self.encoder.end_ids,
            max_length=self.max_length,
        )
        found = _found(rows, encoded, result, moved=encoded.prompt.lengths - boundary)
        is_chat = np.array([row["format"] == "chat" for row in rows], dtype=np.bool_)
        for side, is_cut, appended in zip(
            sides, result.truncated, encoded.end_appended, strict=True
        ):
            found.truncated[side] += int(is_cut.sum())
            found.end_appended += int((appended & is_chat).sum())  # a text has none of its own
        arrays = self.kind.arrays(rows, result)
        return pa.RecordBatch.from_arrays(arrays, schema=self.kind.schema), found


def _found(rows: list[Row], encoded: Encoded, result: Cut, *, moved: Counts) -> _Found:
    """Return what was found in a batch, with the first row of each kind."""
    usable = np.array([problem is None for problem in result.problems], dtype=np.bool_)
    moved = moved[usable]
    found = _Found(len(rows), int((moved > 0).sum()), int(moved.max(initial=0)))
    for row, problem in zip(rows, result.problems, strict=True):
        if problem:
            found.reasons[problem.reason] += 1
            found.examples.setdefault(problem.reason, f"{describe(row)}: {problem.detail}")
    for note, members in encoded.notes.items():
        for index in members:
            if usable[index]:
                found.notes[note] += 1
                more = f", {encoded.unread[index]}" if note == "variables_unread" else ""
                found.examples.setdefault(note, describe(rows[index]) + more)
    return found


def _publish(
    job: _Job, processes: int, *, clock: datetime, out: Path, on_progress: Progress | None
) -> TokenReport:
    units = job.units()
    processes = max(1, min(processes, len(units)))
    total, done = sum(unit.rows for unit in units), 0
    messages: dict[int, Message] = {}
    with (
        publish_file(out) as whole,
        temporary_folder(out.parent) as folder,
    ):
        parts = [folder / f"part-{worker}.arrow" for worker in range(processes)]

        def work(worker: int, send: Send) -> None:
            job.write(units[worker::processes], parts[worker], send)

        def receive(unit: int, message: Message) -> None:
            nonlocal done
            messages[unit] = message
            done += units[unit].rows
            if on_progress:
                on_progress(done, total)

        divide(work, processes=processes, receive=receive)
        found = _Found()
        for unit in units:
            found.add(_Found.of(messages[unit.number]))
        report = job.report(found)
        metadata = {
            "max_length": str(job.max_length),
            **({"max_prompt_length": str(limit)} if (limit := job.max_prompt_length) else {}),
            "clock": clock.isoformat(),
            "template_digest": job.encoder.template_digest,
            "tokenizer": canonical_json(job.encoder.facts()),
            "report": canonical_json(asdict(report)),
        }
        _join(parts, len(units), job.kind.schema.with_metadata(metadata), whole)
    return report


def _join(parts: Sequence[Path], batches: int, schema: pa.Schema, out: Path) -> None:
    """Join the batches of all parts in turn.

    The metadata is at the start of the file and is known at the end: hence a copy.
    """
    readers = [pa.ipc.open_file(pa.memory_map(str(part))) for part in parts]
    with pa.ipc.new_file(str(out), schema) as writer:
        for batch in range(batches):
            worker, index = batch % len(parts), batch // len(parts)
            writer.write_batch(readers[worker].get_batch(index))


def _pair_arrays(rows: list[Row], result: Cut) -> list[pa.Array]:
    chosen, rejected = result.completions
    return [
        pa.array([row["pair_id"] for row in rows], pa.string()),
        pa.array(_digests(result), pa.binary(16)),
        _lists(result.prompt),
        _lists(chosen),
        _lists(rejected),
        pa.array(result.truncated[0], pa.bool_()),
        pa.array(result.truncated[1], pa.bool_()),
        pa.array(result.reasons, pa.string()),
        pa.array([problem and problem.detail for problem in result.problems], pa.string()),
    ]


def _supervised_arrays(rows: list[Row], result: Cut) -> list[pa.Array]:
    return [
        pa.array([row["example_id"] for row in rows], pa.string()),
        pa.array([row["prompt_key"] for row in rows], pa.string()),
        _lists(result.prompt),
        _lists(result.completions[0]),
        pa.array(result.truncated[0], pa.bool_()),
        pa.array(result.reasons, pa.string()),
        pa.array([problem and problem.detail for problem in result.problems], pa.string()),
    ]


def _digests(result: Cut) -> list[bytes | None]:
    """Return each usable row's :func:`~sdpo.tokens.token_file.row_digest`; None for others."""
    prompt, (chosen, rejected) = result.prompt, result.completions
    boundary = prompt.lengths
    header = np.stack([boundary, boundary + chosen.lengths, boundary + rejected.lengths], axis=1)
    headers = Ragged(header.astype(np.int32).ravel(), np.arange(len(prompt) + 1) * 3)
    content = headers.joined(prompt).joined(chosen).joined(prompt).joined(rejected)
    raw = content.ids.astype("<i4").tobytes()
    edges = (content.offsets * 4).tolist()
    return [
        None if reason else blake2b(raw[start:stop], digest_size=16).digest()
        for reason, start, stop in zip(result.reasons, edges, edges[1:], strict=False)
    ]


def _lists(rows: Ragged) -> pa.ListArray:
    return pa.ListArray.from_arrays(rows.offsets.astype(np.int32), rows.ids)


_PAIRS = _Kind(
    columns=("pair_id", "source", "row", "format", "prompt", "chosen", "rejected", INPUTS),
    sides=("chosen", "rejected"),
    schema=TOKENS_SCHEMA,
    arrays=_pair_arrays,
)
_SUPERVISED = _Kind(
    columns=("example_id", "prompt_key", "row", "format", "prompt", "completion", INPUTS),
    sides=("completion",),
    schema=SUPERVISED_TOKENS_SCHEMA,
    arrays=_supervised_arrays,
)
