"""Make ``pairs.parquet`` and ``rejected_rows.jsonl`` from the recipe's sources.

Rows are read once, normalised and written to a scratch file; their keys decide which are repeated
or contradicted; a second pass over the scratch file writes the pairs that stay. Memory does not
grow with the texts. Every row is either a pair or a line of ``rejected_rows.jsonl``.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from sdpo.config import DataConfig, SourceConfig
from sdpo.data.collect import Collected, Progress, SourceCounts
from sdpo.data.duplicates import KEPT, Decisions
from sdpo.data.pairs_file import BatchWriter, iter_row_groups
from sdpo.data.prompts import Rejection
from sdpo.data.readers import default_name
from sdpo.data.schema import PAIRS_SCHEMA, Format
from sdpo.errors import ConfigError
from sdpo.system.files import publish_file, temporary_folder

RejectedAsTokens = Callable[[Path, str], Mapping[int, Rejection]]
"""It takes a ``pairs.parquet`` and its digest, and returns the rows whose tokens cannot be used.

Rows are numbered from 0; each has the reason.
"""

_MORE = 4
"""So many times more pairs are looked at where too few fit."""


@dataclass(frozen=True, slots=True)
class PreparedPairs:
    """Prepared pairs are a run's pairs on disk, with their counts and digest.

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
    rejected_as_tokens: RejectedAsTokens | None = None,
) -> PreparedPairs:
    """Read all sources and publish ``pairs.parquet`` and ``rejected_rows.jsonl`` in ``out``.

    ``default_format`` is what `auto` means: `chat` where the tokenizer has a template. ``strata``
    are dotted paths whose values the pairs carry along; ``source`` among them is no column.
    Sources' paths are absolute or hub names. With ``rejected_as_tokens`` the pairs that
    ``data.limit`` draws are the first, in the order of the draw, whose tokens can be used.

    Raises:
        ConfigError: there is no source, or two have the same name.
        DataError: a source cannot be read, or nothing is left of it. Nothing is published.
    """
    names = source_names(data.sources)
    out.mkdir(parents=True, exist_ok=True)
    with temporary_folder(out) as scratch:
        collected = Collected(scratch, data, strata=[s for s in strata if s != "source"])
        with collected:
            for name, source in zip(names, data.sources, strict=True):
                collected.read(name, source, default_format, on_progress)
        if data.limit and rejected_as_tokens:
            drawn = scratch / "drawn"
            drawn.mkdir()
            _find_unfit(collected, data, rejected_as_tokens, drawn)
        decisions = _decide(collected, data, data.limit)
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
    """Return the sources' names: as given, or those of their files or data sets.

    Raises:
        ConfigError: there is no source, one without a path, or two have the same name.
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


def _decide(
    collected: Collected, data: DataConfig, limit: int, *, is_mixed: bool = True
) -> Decisions:
    return collected.keys.decide(
        max_pairs=[source.max_pairs for source in data.sources],
        limit=limit,
        weights=[source.weight for source in data.sources] if is_mixed else (),
        unfit=collected.unfit,
    )


def _find_unfit(
    collected: Collected, data: DataConfig, rejected_as_tokens: RejectedAsTokens, out: Path
) -> None:
    """Find out of which pairs the tokens cannot be used, as far as ``data.limit`` needs it.

    The tokens of what the limit draws are looked at, then those of more pairs, until it is known of
    every pair drawn in the end whether they can be used.
    """
    limit, looked_at = data.limit, np.zeros(len(collected.keys), np.bool_)
    while True:
        # Before the mixture, which depends on how many pairs of a source fit.
        drawn = _decide(collected, data, limit, is_mixed=False)
        if not (drawn.decision == KEPT).any():
            return
        digest = _publish(collected, drawn, out)
        kept = np.flatnonzero(drawn.decision == KEPT)
        looked_at[kept] = True
        found = rejected_as_tokens(out / "pairs.parquet", digest)
        collected.unfit |= {int(kept[row]): rejection for row, rejection in found.items()}
        final = _decide(collected, data, data.limit, is_mixed=False)
        if looked_at[final.decision == KEPT].all():
            return
        limit *= _MORE


def _publish(collected: Collected, decisions: Decisions, out: Path) -> str:
    """Write both files, ``pairs.parquet`` taking its name last, and return the pairs' digest."""
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
