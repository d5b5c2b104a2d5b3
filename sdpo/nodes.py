"""The nodes that make data ready: pairs, tokens, reserve.

All but tokenising happen in this process, without a model.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from partitions import argsort_ids, reserve_mask
from sdpo.columns import Columns, hex_column, write_parts
from sdpo.data.prepare import prepare_pairs
from sdpo.data.schema import Format
from sdpo.data.supervised import prepare_supervised
from sdpo.digest import read_config
from sdpo.errors import DataError, ModelError
from sdpo.files import digest_of, publish_file, read_json
from sdpo.identity import data_identity, tokens_identity
from sdpo.run import Context, run_once
from sdpo.spec import TokeniseSpec
from sdpo.store import Record
from sdpo.tokens.store import TokenFile

Outcome = tuple[dict[str, Any], list[Path]]


def prepare_data(context: Context) -> Record:
    """``pairs.parquet``, the list of rows not used, and the supervised source's examples."""
    default_format: Format = "chat" if context.resolved.has_template else "text"
    identity = data_identity(
        context.config, dict(context.resolved.inputs), default_format=default_format
    )
    supervised = context.config.supervised
    from_source = supervised.from_source

    def progress(source: str, done: int, total: int | None) -> None:
        context.listen(_progress(f"read {source}", done, total))

    def make() -> Outcome:
        out = context.run.path
        prepared = prepare_pairs(
            context.config.data,
            default_format=default_format,
            strata=context.config.partition.strata,
            out=out,
            on_progress=progress,
        )
        rejected = context.run.rejected_data
        rejected.parent.mkdir(exist_ok=True)
        prepared.rejected_path.replace(rejected)
        files = [prepared.path, rejected]
        outputs: dict[str, Any] = {
            "digest": prepared.digest,
            "pairs": prepared.pairs,
            "sources": [asdict(source) for source in prepared.sources],
            "repeated_prompt_share": prepared.repeated_prompt_share,
        }
        if from_source:
            examples = prepare_supervised(
                supervised, default_format=default_format, out=out, on_progress=progress
            )
            files += [examples.path, examples.rejected_path]
            outputs["supervised"] = {
                "digest": examples.digest,
                "read": examples.read,
                "kept": examples.kept,
                "rejected": examples.rejected,
            }
        return outputs, files

    return run_once(context, "data", identity, make)


def _progress(phase: str, done: int, total: int | None) -> Mapping[str, Any]:
    return {
        "event": "progress",
        "phase": phase,
        "done": done,
        "total": total,
        "unit": "rows",
        "note": "",
    }


def tokens_path(context: Context, kind: str = "pairs") -> Path:
    """Where the token ids of the run's pairs (or ``supervised`` examples) are cached."""
    data = context.run.read_record("data")
    assert data is not None, "tokens come after data"
    content = data["outputs"]["digest"]
    if kind == "supervised":
        content = data["outputs"]["supervised"]["digest"]
    identity = tokens_identity(
        context.config,
        content=content,
        tokenizer=context.resolved.inputs["tokenizer"],
        clock=context.clock if template_uses_clock(context) else "",
        ends=end_token_ids(context.resolved.model),
    )
    return context.cache / "tokens" / f"{digest_of(identity)[:32]}.arrow"


def template_uses_clock(context: Context) -> bool:
    """Whether the chat template may print the date, so that tokens depend on the run's clock."""
    model, given = context.resolved.model, context.config.model.chat_template
    files = [Path(given)] if given else [*model.glob("*.jinja"), model / "tokenizer_config.json"]
    return any(
        "strftime_now" in path.read_text(encoding="utf-8") for path in files if path.is_file()
    )


def end_token_ids(folder: Path) -> list[int]:
    """Tokens at which generation stops, by generation_config.json."""
    path = folder / "generation_config.json"
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    if ends is None:
        return []
    return list(ends) if isinstance(ends, list) else [int(ends)]


def tokenise(context: Context) -> Path:
    """Token ids of every pair, in the cache: made in a stage where they are not there."""
    pairs = tokens_path(context)
    supervised = context.config.supervised
    from_source = supervised.from_source
    examples = tokens_path(context, "supervised") if from_source else None
    missing = [path for path in (pairs, examples) if path and not path.is_file()]
    status, reason = ("run", "not cached") if missing else ("reuse", "")
    context.listen({"event": "node", "node": "tokens", "status": status, "reason": reason})
    if missing:
        context.executed.append("tokens")
        context.stage(
            TokeniseSpec(
                name="tokenise",
                run=context.run.path,
                model=context.config.model,
                launch=context.config.launch,
                tokenizer=context.resolved.model,
                pairs=context.run.pairs,
                out=pairs,
                supervised=context.run.path / "supervised.parquet" if examples else None,
                supervised_out=examples,
                max_length=context.config.data.max_length,
                clock=context.clock,
                end_token_ids=end_token_ids(context.resolved.model),
            )
        )
    _check_positions(context, TokenFile.open(pairs))
    return pairs


def _check_positions(context: Context, tokens: TokenFile) -> None:
    """Refuse sequences longer than the positions the model was trained on."""
    config = read_config(context.resolved.model)
    positions = config.get("text_config", config).get("max_position_embeddings")
    longest = int(tokens.sequence_lengths.max(initial=0))
    if positions and longest > positions:
        raise ModelError(
            f"the longest sequence has {longest} tokens and the model has {positions} positions: "
            f"set data.max_length to {positions} or less"
        )


def reserve(context: Context) -> Record:
    """``usable.parquet``: pairs that can be used, those of reserved prompts marked.

    ``rejected_rows.jsonl`` is complete from here on: rows that the tokenizer rejects come last.
    """
    settings = context.config.data.reserve
    tokens = TokenFile.open(tokens_path(context))
    # The name of the token file is the digest of everything it was made from.
    identity = {"tokens": tokens_path(context).stem, "reserve": settings.model_dump()}

    def make() -> Outcome:
        pairs, names = Columns(context.run.pairs), source_names(context)
        source = pairs.codes("source", names)
        unusable = _unusable(tokens, source, names)
        kept = np.flatnonzero(tokens.usable)
        _check_sources_left(source[kept], names, unusable)
        prompts = pairs.ids("prompt_key")[kept]
        mask = reserve_mask(
            prompts,
            source[kept],
            n_sources=len(names),
            fraction=settings.fraction,
            min_pairs=settings.min_pairs,
            max_fraction=settings.max_fraction,
            key=settings.key,
        )
        counts = np.bincount(source[kept][mask], minlength=len(names))
        with publish_file(context.run.usable) as temporary:
            _write_usable(temporary, pairs, names, source, kept=kept, prompts=prompts, mask=mask)
        _publish_rejected(context, tokens, pairs, names, source)
        return {
            "usable": len(kept),
            "reserved": dict(zip(names, counts.tolist(), strict=True)),
            "unusable": unusable,
        }, [context.run.usable, context.run.rejected]

    return run_once(context, "reserve", identity, make)


_USABLE_SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("prompt_key", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("chosen_chars", pa.int32()),
        ("rejected_chars", pa.int32()),
        ("token_row", pa.int64()),
        ("reserved", pa.bool_()),
    ]
)
"""Columns of ``usable.parquet``, which is in the order of the pairs' ids. ``token_row`` is the row
in ``pairs.parquet`` and in the token file."""


def _write_usable(
    path: Path,
    pairs: Columns,
    names: list[str],
    source: np.ndarray,
    *,
    kept: np.ndarray,
    prompts: np.ndarray,
    mask: np.ndarray,
) -> None:
    """Write the pairs at rows ``kept``, with the ids of their prompts and who is reserved."""
    ids = pairs.ids("pair_id")[kept]
    numbers = [pairs.numbers(name) for name in ("row", "chosen_chars", "rejected_chars")]
    order, listed = argsort_ids(ids), pa.array(names, pa.string())

    def part(rows: slice) -> list[pa.Array]:
        at = order[rows]
        return [
            hex_column(ids[at]),
            hex_column(prompts[at]),
            listed.take(pa.array(source[kept[at]])),
            *(pa.array(values[kept[at]]) for values in numbers),
            pa.array(kept[at]),
            pa.array(mask[at]),
        ]

    write_parts(path, _USABLE_SCHEMA, len(kept), part)


def _publish_rejected(
    context: Context, tokens: TokenFile, pairs: Columns, names: list[str], source: np.ndarray
) -> None:
    """``rejected_rows.jsonl``: rows rejected as text, then those rejected as tokens."""
    rows = pairs.numbers("row")
    with publish_file(context.run.rejected) as temporary:
        shutil.copyfile(context.run.rejected_data, temporary)
        with temporary.open("a", encoding="utf-8") as file:
            for index, reason in tokens.rejected():
                where = {"source": names[source[index]], "row": int(rows[index])}
                line = {**where, "reason": reason, "detail": ""}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def source_names(context: Context) -> list[str]:
    """Names of the sources, in the recipe's order."""
    return [source.name for source in context.config.data.sources]


def _unusable(tokens: TokenFile, source: np.ndarray, names: list[str]) -> dict[str, dict[str, int]]:
    """Per source, how many pairs the tokenizer rejects for which reason."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for row, reason in tokens.rejected():
        counts[names[source[row]]][reason] += 1
    return {name: dict(counter) for name, counter in counts.items()}


def _check_sources_left(
    source: np.ndarray, names: list[str], unusable: dict[str, dict[str, int]]
) -> None:
    for code, name in enumerate(names):
        if not (source == code).any():
            counts = ", ".join(f"{n} {reason}" for reason, n in unusable[name].items())
            raise DataError(
                f"source {name} has no pairs left after tokenisation ({counts}): "
                "raise data.max_length, or leave the source out"
            )
