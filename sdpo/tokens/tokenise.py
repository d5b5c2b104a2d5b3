"""Files of normalised text to files of token ids, batch by batch.

A row that cannot be used stays in the file with its reason and empty lists, so that nothing
disappears. The file is Arrow IPC, written beside its place and renamed; its schema metadata holds
the settings, the facts about the tokenizer and the report.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.files import TEMPORARY, canonical_json, publish_file
from sdpo.tokens.boundary import Cut, MovedBoundaries, boundary_of, cut
from sdpo.tokens.store import (
    SUPERVISED_TOKENS_SCHEMA,
    TOKENS_SCHEMA,
    Ids,
    TokenReport,
    row_digest,
)
from sdpo.tokens.template import Encoder, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
"""Told the rows done and the rows there are."""

_BATCH_ROWS = 1000


def tokenise_pairs(
    pairs_path: Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    clock: datetime,
    out: Path,
    end_token_ids: Sequence[int] = (),
    on_progress: Progress | None = None,
) -> TokenReport:
    """Publish the tokens of ``pairs.parquet`` at ``out``, readable as
    :class:`~sdpo.tokens.store.TokenFile`, in the same order.

    ``max_length`` is in tokens of prompt + completion, of which the start is kept. ``clock`` is the
    present that chat templates see. ``end_token_ids``: see :class:`~sdpo.tokens.template.Encoder`.

    Raises:
        ModelError: conversations without a chat template, or a tokenizer that cannot be used.
        DataError: a conversation that the template refuses, or boundaries that move too often.
            Nothing is published.
    """
    encoder = Encoder(tokenizer, clock=clock, end_token_ids=end_token_ids)
    job = _Job(_PAIRS, encoder, max_length)
    return _publish(job, pairs_path, clock=clock, out=out, on_progress=on_progress)


def tokenise_supervised(
    examples_path: Path,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    clock: datetime,
    out: Path,
    end_token_ids: Sequence[int] = (),
    on_progress: Progress | None = None,
) -> TokenReport:
    """Likewise for ``supervised.parquet``; readable as
    :class:`~sdpo.tokens.store.SupervisedTokenFile`."""
    encoder = Encoder(tokenizer, clock=clock, end_token_ids=end_token_ids)
    job = _Job(_SUPERVISED, encoder, max_length)
    return _publish(job, examples_path, clock=clock, out=out, on_progress=on_progress)


@dataclass(frozen=True)
class _Kind:
    """What distinguishes pairs from supervised examples."""

    columns: tuple[str, ...]
    sides: tuple[str, ...]
    schema: pa.Schema
    arrays: Callable[[list[Row], list[Cut]], list[pa.Array]]


class _Job:
    """One pass over a file: cuts its rows and counts what it finds."""

    def __init__(self, kind: _Kind, encoder: Encoder, max_length: int) -> None:
        self.kind = kind
        self.encoder = encoder
        self.max_length = max_length
        self._moved = MovedBoundaries(encoder.tokenizer)
        self._reasons: Counter[str] = Counter()
        self._truncated: Counter[str] = Counter()
        self._end_appended = 0

    def batches(self, path: Path, on_progress: Progress | None) -> Iterator[pa.RecordBatch]:
        """The file's rows as batches of ids.

        Raises:
            DataError: as :func:`tokenise_pairs`.
        """
        with pq.ParquetFile(path) as file:
            total = file.metadata.num_rows
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(self.kind.columns)):
                rows = batch.to_pylist()
                arrays = self.kind.arrays(rows, self._cut(rows))
                yield pa.RecordBatch.from_arrays(arrays, schema=self.kind.schema)
                if on_progress:
                    on_progress(self._moved.rows, total)
        self._moved.check()

    def report(self) -> TokenReport:
        """What was found in the rows so far."""
        return TokenReport(
            rows=self._moved.rows,
            usable=self._moved.rows - self._reasons.total(),
            reasons=dict(sorted(self._reasons.items())),
            truncated={side: self._truncated[side] for side in self.kind.sides},
            moved_rows=self._moved.moved,
            most_moved_tokens=self._moved.most_tokens,
            end_tokens=self.encoder.end_tokens,
            end_appended=self._end_appended,
        )

    def _cut(self, rows: list[Row]) -> list[Cut]:
        cuts = []
        for row, encoded in zip(rows, self.encoder.encode(rows, self.kind.sides), strict=True):
            boundary = boundary_of(encoded)
            self._moved.add(row, encoded, boundary)
            result = cut(
                encoded,
                boundary=boundary,
                messages=[len(row[side]) for side in self.kind.sides],
                end_ids=self.encoder.end_ids,
                max_length=self.max_length,
            )
            if row["format"] == "chat":  # a text has no end token of its own
                self._end_appended += sum(encoded.end_appended)
            self._truncated.update(self._cut_sides(result))
            if result.reason:
                self._reasons[result.reason] += 1
            cuts.append(result)
        return cuts

    def _cut_sides(self, result: Cut) -> list[str]:
        return [s for s, is_cut in zip(self.kind.sides, result.truncated, strict=True) if is_cut]


def _publish(
    job: _Job, path: Path, *, clock: datetime, out: Path, on_progress: Progress | None
) -> TokenReport:
    with (
        publish_file(out) as whole,
        TemporaryDirectory(dir=out.parent, prefix=TEMPORARY) as folder,
    ):
        # The metadata stands at the start of the file and is known at the end: hence a copy.
        body = Path(folder) / "body.arrow"
        with pa.ipc.new_file(str(body), job.kind.schema) as writer:
            for batch in job.batches(path, on_progress):
                writer.write_batch(batch)
        report = job.report()
        metadata = {
            "max_length": str(job.max_length),
            "clock": clock.isoformat(),
            "template_digest": job.encoder.template_digest,
            "tokenizer": canonical_json(job.encoder.facts()),
            "report": canonical_json(asdict(report)),
        }
        with (
            pa.memory_map(str(body)) as source,
            pa.ipc.open_file(source) as reader,
            pa.ipc.new_file(str(whole), reader.schema.with_metadata(metadata)) as writer,
        ):
            for index in range(reader.num_record_batches):
                writer.write_batch(reader.get_batch(index))
    return report


def _pair_arrays(rows: list[Row], cuts: list[Cut]) -> list[pa.Array]:
    digests = [None if c.reason else row_digest(c.prompt, *c.completions) for c in cuts]
    return [
        pa.array([row["pair_id"] for row in rows], pa.string()),
        pa.array(digests, pa.binary(16)),
        _lists([c.prompt for c in cuts]),
        _lists([c.completions[0] for c in cuts]),
        _lists([c.completions[1] for c in cuts]),
        pa.array([c.truncated[0] for c in cuts], pa.bool_()),
        pa.array([c.truncated[1] for c in cuts], pa.bool_()),
        pa.array([c.reason for c in cuts], pa.string()),
    ]


def _supervised_arrays(rows: list[Row], cuts: list[Cut]) -> list[pa.Array]:
    return [
        pa.array([row["example_id"] for row in rows], pa.string()),
        pa.array([row["prompt_key"] for row in rows], pa.string()),
        _lists([c.prompt for c in cuts]),
        _lists([c.completions[0] for c in cuts]),
        pa.array([c.truncated[0] for c in cuts], pa.bool_()),
        pa.array([c.reason for c in cuts], pa.string()),
    ]


def _lists(rows: list[Ids]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.concatenate(rows))


_PAIRS = _Kind(
    columns=("pair_id", "source", "row", "format", "prompt", "chosen", "rejected"),
    sides=("chosen", "rejected"),
    schema=TOKENS_SCHEMA,
    arrays=_pair_arrays,
)
_SUPERVISED = _Kind(
    columns=("example_id", "prompt_key", "row", "format", "prompt", "completion"),
    sides=("completion",),
    schema=SUPERVISED_TOKENS_SCHEMA,
    arrays=_supervised_arrays,
)
