"""Set pairs aside before anything is trained, and list the usable ones."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from partitions import argsort_ids, most_reserved, reserve_mask
from sdpo.chain.context import Context
from sdpo.chain.data import source_names
from sdpo.chain.node import Find, Identity, Made, Node
from sdpo.chain.tokens import tokens_path
from sdpo.config.data import ReserveConfig
from sdpo.data.parquet_columns import Columns, hex_column, write_parts
from sdpo.data.readers import numbered
from sdpo.errors import DataError
from sdpo.events import WarningEvent
from sdpo.identity.payloads import changed_settings
from sdpo.system.files import publish_file
from sdpo.system.json_values import JsonObject
from sdpo.tokens.token_file import TokenFile


def reserve(context: Context) -> Node:
    """Return the node that makes ``usable.parquet``: usable pairs, the reserved ones marked.

    ``rejected_rows.jsonl`` is complete from here on: rows that the tokenizer rejects come last.
    """

    def choose(_pairs: np.ndarray, prompts: np.ndarray, source: np.ndarray) -> np.ndarray:
        return reserved_by_settings(context, prompts, source)

    return reserve_by(context, choose)


def reserved_by_settings(context: Context, prompts: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return which of these pairs the recipe sets aside, bool ``[pairs]``.

    ``prompts`` and ``source`` are those of a :data:`ChooseReserved`.

    Raises:
        DataError: ``data.reserve.pairs`` leaves nothing of a source to train on.
    """
    settings, names = context.config.data.reserve, source_names(context)
    mask = reserve_mask(
        prompts,
        source,
        n_sources=len(names),
        fraction=settings.fraction,
        min_pairs=settings.min_pairs,
        max_fraction=settings.max_fraction,
        key=settings.key,
        pairs=settings.pairs,
    )
    if settings.pairs:
        most = most_reserved(prompts, source, n_sources=len(names), key=settings.key)
        has, set_aside = (
            np.bincount(codes, minlength=len(names)) for codes in (source, source[mask])
        )
        for code in np.flatnonzero(has):
            if settings.pairs > most[code]:
                raise _nothing_left(names[code], settings.pairs, int(has[code]), int(most[code]))
            if set_aside[code] == has[code]:
                raise DataError(
                    f"data.reserve.pairs {settings.pairs} leaves none of the {has[code]} usable "
                    f"pairs of source {names[code]} to train on: their prompts are in other "
                    "sources too, and a prompt that is set aside in one is in all. Lower it"
                )
    return mask


def _nothing_left(name: str, wanted: int, has: int, most: int) -> DataError:
    remedy = f"set it to {most} or less" if most else "set it to 0, or give data with more prompts"
    return DataError(
        f"data.reserve.pairs {wanted} leaves nothing of source {name} to train on: it has {has} "
        f"usable pairs, of which {most} can be set aside by whole prompts with one prompt left. "
        f"For all sources alike: {remedy}"
    )


ChooseReserved = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""A function of this kind chooses the pairs that are reserved, bool ``[pairs]``.

It gets the ids of the usable pairs and of their prompts, uint64 ``[pairs, 2]`` each, and the codes
of their sources.
"""


def reserve_by(
    context: Context, choose: ChooseReserved, *, carried: Mapping[str, str] | None = None
) -> Node:
    """Return the node of :func:`reserve`, with the pairs that ``choose`` picks.

    ``carried`` is part of its identity too.
    """
    settings = context.config.data.reserve

    def identity() -> Identity:
        return {
            # The name of the token file is the digest of everything it was made from.
            "tokens": tokens_path(context).stem,
            "reserve": changed_settings(settings, "reserve"),
            **({"carried": dict(carried)} if carried else {}),
        }

    def make(_find: Find) -> Made:
        tokens = TokenFile.open(tokens_path(context))
        pairs, names = Columns(context.run.pairs), source_names(context)
        source = pairs.codes("source", names)
        unusable = _unusable(tokens, source, names)
        _tell_draws(context, unusable)
        kept = np.flatnonzero(tokens.usable)
        _check_sources_left(context, tokens, source, pairs.numbers("row"))
        prompts = pairs.ids("prompt_key")[kept]
        mask = choose(pairs.ids("pair_id")[kept], prompts, source[kept])
        if not mask.any():
            raise _nothing_reserved(settings, len(kept))
        counts = np.bincount(source[kept][mask], minlength=len(names))
        with publish_file(context.run.usable) as temporary:
            _write_usable(temporary, pairs, names, source, kept=kept, prompts=prompts, mask=mask)
        _publish_rejected(context, tokens, pairs, names, source)
        outputs: JsonObject = {
            "usable": len(kept),
            "reserved": dict(zip(names, counts.tolist(), strict=True)),
            "unusable": unusable,
        }
        return Made(outputs, [context.run.usable, context.run.rejected])

    return Node(
        name="reserve", title="reserve", inputs=("data", "tokens"), identity=identity, make=make
    )


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
"""``usable.parquet`` has these columns, and is in the order of the pairs' ids.

``token_row`` is the row in ``pairs.parquet`` and in the token file.
"""


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
    """Write the pairs at rows ``kept``, in the order of their ids.

    ``prompts`` are the ids of their prompts, ``mask`` says which are reserved; both are ``[kept]``.
    """
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
    """Publish ``rejected_rows.jsonl``: rows rejected as text, then those rejected as tokens."""
    rows = pairs.numbers("row")
    with publish_file(context.run.rejected) as temporary:
        shutil.copyfile(context.run.rejected_data, temporary)
        with temporary.open("a", encoding="utf-8") as file:
            for index, reason, detail in tokens.rejected():
                where = {"source": names[source[index]], "row": int(rows[index])}
                line = {**where, "reason": reason, "detail": detail}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _tell_draws(context: Context, unusable: Mapping[str, Mapping[str, int]]) -> None:
    """Warn where fewer pairs are left than were asked for, as they were drawn by their text."""
    for source in context.config.data.given:
        name = "data.limit" if context.config.data.limit else "max_pairs"
        asked, lost = context.config.data.limit or source.max_pairs, unusable[source.name]
        if source.weight and lost and len(unusable) > 1:
            message = (
                f"source {source.name}: its weight draws pairs before their tokens are known, and "
                f"{sum(lost.values())} of those drawn cannot be used ({_told(lost)}), so the "
                "mixture has fewer of it than the weights say"
            )
            context.listen(WarningEvent(message=message))
        if asked and lost:
            message = (
                f"source {source.name}: {name} draws {asked} pairs before their tokens are known, "
                f"and {sum(lost.values())} of those drawn cannot be used ({_told(lost)}): raise "
                f"{name} for more"
            )
            context.listen(WarningEvent(message=message))


def _told(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _unusable(tokens: TokenFile, source: np.ndarray, names: list[str]) -> dict[str, dict[str, int]]:
    """Return, per source, how many pairs the tokenizer rejects for which reason."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for row, reason, _ in tokens.rejected():
        counts[names[source[row]]][reason] += 1
    return {name: dict(counter) for name, counter in counts.items()}


def _nothing_reserved(settings: ReserveConfig, pairs: int) -> DataError:
    what = (
        f"of {pairs} usable pairs none is set aside, so that nothing could be measured on pairs "
        "that were not trained on"
    )
    if settings.fraction:
        return DataError(f"{what}: each source has one prompt alone. Give data with more prompts")
    return DataError(
        f"{what}: set data.reserve.fraction above 0 (it is rounded up, to one pair of a source at "
        f"least); it is 0, data.reserve.min_pairs {settings.min_pairs} and "
        f"data.reserve.max_fraction {settings.max_fraction:g}, which is rounded down"
    )


def _check_sources_left(
    context: Context, tokens: TokenFile, source: np.ndarray, rows: np.ndarray
) -> None:
    given = context.config.data.given
    for code in sorted({*range(len(given))} - {*source[tokens.usable].tolist()}):
        counts: Counter[str] = Counter()
        first = ""
        for row, reason, detail in tokens.rejected():
            if source[row] == code:
                counts[reason] += 1
                place = numbered(given[code].path, int(rows[row]))
                first = first or f"{place.capitalize()}: {detail}"
        told = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
        raise DataError(
            f"source {given[code].name} has no pairs left after tokenisation ({told}). {first}"
        )
