"""The nodes that make data ready: pairs, tokens, reserve.

All but tokenising happen in this process, without a model.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from partitions import argsort_ids, reserve_mask
from sdpo.chain.open_run import Context, run_once
from sdpo.data.parquet_columns import Columns, hex_column, write_parts
from sdpo.data.prepare import prepare_pairs
from sdpo.data.schema import Format
from sdpo.data.supervised import prepare_supervised
from sdpo.errors import DataError, ModelError
from sdpo.identity.model_folder import read_config, read_object, text_config
from sdpo.identity.payloads import data_identity, tokens_identity
from sdpo.inputs.resolve import data_digests
from sdpo.processes.stage_specs import TokeniseSpec
from sdpo.store.run_folder import Record
from sdpo.system.files import (
    checksum_path,
    checksum_text,
    digest_of,
    is_vouched_for,
    publish_file,
    write_text,
)
from sdpo.system.locks import hold
from sdpo.tokens.token_file import TokenFile

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
        check_sources(context, [source.name for source in context.config.data.sources])
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


def check_sources(context: Context, names: list[str]) -> None:
    """Refuse data that is not what the run was made from: a run with an origin has not looked.

    Raises:
        DataError: a file is gone or has changed; names the digests.
    """
    inputs = context.resolved.inputs
    unread = {f"data.{s.name}": "" for s in context.config.data.sources if s.name not in names}
    found = data_digests(context.config, known={name: inputs[name] for name in unread})
    for name, digest in found.items():
        if digest != inputs[name]:
            raise DataError(
                f"{name.removeprefix('data.')} is not the data that this run was made from: its "
                f"digest is {digest[:16]}, not {inputs[name][:16]}. Put the file back, or make a "
                "run of its own from it"
            )


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
    return cached_tokens(context.cache, digest_of(identity)[:32])


def cached_tokens(cache: Path, name: str) -> Path:
    """Where the token file of this name is."""
    return cache / "tokens" / f"{name}.arrow"


def template_uses_clock(context: Context) -> bool:
    """Whether the chat template may print the date, so that tokens depend on the run's clock."""
    model, given = context.resolved.model, context.config.model.chat_template
    files = [Path(given)] if given else [*model.glob("*.jinja"), model / "tokenizer_config.json"]
    return any(
        "strftime_now" in path.read_text(encoding="utf-8", errors="replace")
        for path in files
        if path.is_file()
    )


def end_token_ids(folder: Path) -> list[int]:
    """Tokens at which generation stops, by generation_config.json.

    Raises:
        ModelError: the file has something else there than token ids.
    """
    path = folder / "generation_config.json"
    ends = read_object(path).get("eos_token_id") if path.is_file() else None
    listed = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if any(type(end) is not int for end in listed):
        raise ModelError(f"{path}: eos_token_id is {ends!r}, and a token id is a number")
    return list(listed)


def tokenise(context: Context) -> Path:
    """Token ids of every pair, in the cache: made in a stage where they are not there."""
    pairs, *examples = token_paths(context)
    spec = TokeniseSpec(
        name="tokenise",
        run=context.run.path,
        model=context.config.model,
        launch=context.config.launch,
        tokenizer=context.resolved.model,
        pairs=context.run.pairs,
        out=pairs,
        supervised=context.run.path / "supervised.parquet" if examples else None,
        supervised_out=examples[0] if examples else None,
        max_length=context.config.data.max_length,
        clock=context.clock,
        end_token_ids=end_token_ids(context.resolved.model),
    )
    ensure_tokens(context, spec, node="tokens")
    _check_positions(context, TokenFile.open(pairs))
    return pairs


def ensure_tokens(context: Context, spec: TokeniseSpec, *, node: str) -> None:
    """See to it that the token files that ``spec`` makes are in the cache, and whole."""
    wanted = [spec.out, *filter(None, [spec.supervised_out])]
    if not any(map(token_fault, wanted)):
        _tell_tokens(context, node, [])
        return
    # Another run may be making the same tokens: then this one waits and finds them.
    lock = spec.out.with_name(f".{spec.out.stem}.lock")
    what = f"the token file {spec.out.name}"
    with hold(lock, what=what, wait=True, listen=context.listen) as handle:
        faults = [fault for path in wanted if (fault := token_fault(path))]
        _tell_tokens(context, node, faults)
        if faults:
            context.executed.append(node)
            context.stage(spec, handle)
            for path in wanted:
                write_text(checksum_path(path), checksum_text(path))
        lock.unlink(missing_ok=True)


def token_paths(context: Context) -> list[Path]:
    """Token files that the run needs: of its pairs, and of the supervised source's examples."""
    from_source = context.config.supervised.from_source and not context.carried  # S is, too
    return [tokens_path(context), *([tokens_path(context, "supervised")] if from_source else [])]


def _tell_tokens(context: Context, node: str, faults: list[str]) -> None:
    status, reason = ("run", faults[0]) if faults else ("reuse", "")
    context.listen({"event": "node", "node": node, "status": status, "reason": reason})


def token_fault(path: Path) -> str:
    """What is wrong with a cached token file, by the digest beside it; empty: nothing."""
    if not path.is_file() or not checksum_path(path).is_file():
        return "not cached"
    return "" if is_vouched_for(path) else f"{path.name} in the cache was changed"


def _check_positions(context: Context, tokens: TokenFile) -> None:
    """Refuse sequences longer than the positions the model was trained on."""
    config = read_config(context.resolved.model)
    positions = text_config(config).get("max_position_embeddings")
    longest = int(tokens.sequence_lengths.max(initial=0))
    if isinstance(positions, int) and 0 < positions < longest:
        raise ModelError(
            f"the longest sequence has {longest} tokens and the model has {positions} positions: "
            f"set data.max_length to {positions} or less"
        )


def reserve(context: Context) -> Record:
    """``usable.parquet``: pairs that can be used, those of reserved prompts marked.

    ``rejected_rows.jsonl`` is complete from here on: rows that the tokenizer rejects come last.
    """
    settings = context.config.data.reserve

    def choose(_pairs: np.ndarray, prompts: np.ndarray, source: np.ndarray) -> np.ndarray:
        return reserve_mask(
            prompts,
            source,
            n_sources=len(source_names(context)),
            fraction=settings.fraction,
            min_pairs=settings.min_pairs,
            max_fraction=settings.max_fraction,
            key=settings.key,
        )

    return reserve_by(context, choose)


Choice = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From the ids of the usable pairs, those of their prompts (uint64 ``[pairs, 2]``) and the codes of
their sources: which are reserved, bool ``[pairs]``."""


def reserve_by(
    context: Context, choose: Choice, *, carried: Mapping[str, Any] | None = None
) -> Record:
    """As :func:`reserve`, with the pairs that ``choose`` picks; ``carried`` bears identity too."""
    settings = context.config.data.reserve
    tokens = TokenFile.open(tokens_path(context))
    # The name of the token file is the digest of everything it was made from.
    identity = {"tokens": tokens_path(context).stem, "reserve": settings.model_dump()}
    if carried:
        identity["carried"] = dict(carried)

    def make() -> Outcome:
        pairs, names = Columns(context.run.pairs), source_names(context)
        source = pairs.codes("source", names)
        unusable = _unusable(tokens, source, names)
        kept = np.flatnonzero(tokens.usable)
        _check_sources_left(source[kept], names, unusable)
        prompts = pairs.ids("prompt_key")[kept]
        mask = choose(pairs.ids("pair_id")[kept], prompts, source[kept])
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
