"""Find the prompts that models answer for win rates: reserved ones, or those of a file.

A file's are a node, ``prompts-<key>``: the table of those that are used, as they were read and cut
into tokens, stays with the run.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sdpo.chain.context import Context
from sdpo.chain.node import Cached, Find, Identity, Made, Node, Part
from sdpo.chain.tokens import rule_of_tokens, tokenise_spec, tokens_path
from sdpo.config import SourceConfig
from sdpo.data.prepare import PreparedPairs
from sdpo.data.prompt_file import prompts_as_pairs
from sdpo.data.reserved_prompts import reserved_rows
from sdpo.data.schema import MESSAGES
from sdpo.errors import DataError
from sdpo.events import WarningEvent
from sdpo.identity.canonical import digest_of
from sdpo.inputs.locate import data_digest
from sdpo.system.files import publish_file, temporary_folder
from sdpo.system.nearby import did_you_mean
from sdpo.system.words import be, counted
from sdpo.tokens.token_file import TokenFile

PROMPTS_VERSION = 1
"""This version is raised when other prompts come out of the same file."""
_SETTING = "evaluation.win_rate.prompt_file"


def prompt_parts(context: Context) -> list[Part] | None:
    """Return what has to be done for the prompts first; None: there are none to answer."""
    given = context.config.evaluation.win_rate.prompt_file
    if given and not Path(given).exists():
        return [_missing(Path(given))]
    if given:
        return [_of_file(context)]
    if reserved_rows(pq.read_table(context.run.plan), count=1):
        return []
    message = "evaluation.win_rate has no effect: there is no reserve to take prompts of"
    context.listen(WarningEvent(message=message))
    return None


def prompts_digest(context: Context) -> str:
    """Return the digest of the prompts, and of the token ids that models read."""
    win = context.config.evaluation.win_rate
    if win.prompt_file:
        return digest_of(_identity(context))
    tokens = TokenFile.open(tokens_path(context))
    rows = reserved_rows(pq.read_table(context.run.plan), count=win.prompts)
    return digest_of(
        [[row["prompt_key"], tokens.row(row["token_row"]).prompt_ids.tolist()] for row in rows]
    )


def prompts_title(context: Context) -> str:
    """Return what people call the prompts; empty: they are reserved ones."""
    given = context.config.evaluation.win_rate.prompt_file
    return f"{Path(given).name} ({data_digest(given, '')[:8]})" if given else ""


@contextmanager
def prompts_table(context: Context) -> Iterator[Path]:
    """Yield a table with a row for each prompt: see :class:`CompletionsSpec`."""
    if context.config.evaluation.win_rate.prompt_file:
        yield _file(context)
        return
    with temporary_folder(context.run.path) as scratch:
        path = scratch / "prompts.parquet"
        pq.write_table(_reserved(context), path)
        yield path


def _reserved(context: Context) -> pa.Table:
    tokens = TokenFile.open(tokens_path(context))
    count = context.config.evaluation.win_rate.prompts
    rows = reserved_rows(pq.read_table(context.run.plan), count=count)
    wanted = [row["pair_id"] for row in rows]
    pairs = pq.read_table(
        context.run.pairs, columns=["pair_id", "prompt"], filters=[("pair_id", "in", wanted)]
    )
    at = pc.index_in(pa.array(wanted, pa.string()), pairs["pair_id"].cast(pa.string()))
    return _table(
        [row["prompt_key"] for row in rows],
        [row["source"] for row in rows],
        pairs["prompt"].take(at),
        [tokens.row(row["token_row"]).prompt_ids for row in rows],
    )


def _table(
    keys: list[str], sources: list[str], prompts: pa.ChunkedArray, ids: Sequence[np.ndarray]
) -> pa.Table:
    return pa.table(
        {
            "prompt_key": pa.array(keys, pa.string()),
            "source": pa.array(sources, pa.string()),
            "prompt": prompts.cast(MESSAGES),
            "prompt_ids": pa.array(list(ids), pa.list_(pa.int32())),
        }
    )


def _missing(path: Path) -> Cached:
    """Return a part that stands for a file that is not there: nothing makes it but its owner."""
    what = f"no prompts at {path}{did_you_mean(path)}"

    def refuse(_locks: Sequence[int]) -> NoReturn:
        raise DataError(f"{_SETTING}: {what}: put the file back, or name another one")

    return Cached(name="prompts of the win rates", fault=lambda: what, make=refuse)


def _identity(context: Context) -> Identity:
    win = context.config.evaluation.win_rate
    return {
        "prompts_version": PROMPTS_VERSION,
        "file": data_digest(win.prompt_file, ""),
        "column": win.prompt_column,
        "prompts": win.prompts,
        "format": "chat" if context.resolved.has_template else "text",
        "tokens": rule_of_tokens(context),
    }


def _file(context: Context) -> Path:
    return context.run.evaluations / f"prompts-{digest_of(_identity(context))[:8]}.parquet"


def _of_file(context: Context) -> Node:
    path = _file(context)

    def make(_find: Find) -> Made:
        with temporary_folder(context.run.path) as scratch:
            table = _read_file(context, scratch)
        with publish_file(path) as temporary:
            pq.write_table(table, temporary)
        return Made({"prompts": len(table), "title": prompts_title(context)}, [path])

    return Node(
        name=path.stem,
        title="read prompts",
        inputs=("plan",),
        identity=lambda: _identity(context),
        make=make,
        is_view=True,
    )


def _read_file(context: Context, scratch: Path) -> pa.Table:
    """Return the file's prompts that are used, and warn of what is left out, and of those known.

    Raises:
        DataError: none can be used.
    """
    win = context.config.evaluation.win_rate
    prepared = prompts_as_pairs(
        SourceConfig(path=win.prompt_file),
        column=win.prompt_column,
        name=Path(win.prompt_file).name,
        setting="evaluation.win_rate.prompt_column",
        default_format="chat" if context.resolved.has_template else "text",
        out=scratch,
    )
    out = scratch / "prompts.arrow"
    context.stage(tokenise_spec(context, prepared.path, out=out, name="tokenise-prompts"))
    tokens, pairs = TokenFile.open(out), pq.read_table(prepared.path)
    usable = np.flatnonzero(tokens.usable)
    if not len(usable):
        reasons = ", ".join(f"{name} {n}" for name, n in tokens.report.reasons.items())
        raise DataError(f"{_SETTING}: {win.prompt_file} has no prompt that can be used ({reasons})")
    rows = usable[: win.prompts]
    taken = pairs.take(pa.array(rows))
    keys = taken["prompt_key"].cast(pa.string()).to_pylist()
    _warn(context, prepared, tokens.report.reasons, usable=len(usable), keys=keys)
    return _table(
        keys,
        taken["source"].cast(pa.string()).to_pylist(),
        taken["prompt"],
        [tokens.row(row).prompt_ids for row in rows.tolist()],
    )


def _warn(
    context: Context,
    prepared: PreparedPairs,
    unusable: Mapping[str, int],
    *,
    usable: int,
    keys: Sequence[str],
) -> None:
    """Say which rows of the file are not answered, and which prompts were trained on."""
    (read,) = prepared.sources
    reasons = Counter(read.rejected) + Counter(unusable)
    said = []
    if reasons:
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        left = read.read - usable
        rows = counted(read.read, "row")
        said.append(f"{left} of {rows} {be(left)} no prompt that is used ({why})")
    if usable > len(keys):
        said.append(
            f"the first {len(keys)} of {usable} prompts are answered (evaluation.win_rate.prompts)"
        )
    plan = pq.read_table(context.run.plan, columns=["prompt_key", "step"])
    trained = set(plan.filter(pc.greater(plan["step"], 0))["prompt_key"].to_pylist())
    if met := len(trained.intersection(keys)):
        said.append(
            f"{met} of {len(keys)} prompts are among the pairs that steps train on, so that the "
            "models have seen answers to them"
        )
    for message in said:
        context.listen(WarningEvent(message=f"{_SETTING}: {read.name}: {message}"))
