"""Draw the prompts of a round: never a reserved one, and none that an earlier round has answered.

Prompts are another source's, or a file's (:mod:`sdpo.data.prompt_file`).
"""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sdpo.chain.context import Context
from sdpo.chain.planned_rounds import prompts_input
from sdpo.config import SourceConfig
from sdpo.config.generating import GenerateConfig
from sdpo.data.keys import draw_key
from sdpo.data.pairs_file import iter_row_groups
from sdpo.data.prompt_file import prompts_as_pairs
from sdpo.data.schema import PAIRS_SCHEMA
from sdpo.errors import DataError
from sdpo.identity.canonical import digest_of
from sdpo.identity.payloads import Payload
from sdpo.inputs.locate import data_digest
from sdpo.store.plan_file import PlanFile, read_plan
from sdpo.store.run_folder import RunFolder
from sdpo.system.files import read_json, temporary_folder


def source_of(context: Context, name: str) -> SourceConfig:
    """Return a generated source of the recipe by its name."""
    return next(source for source in context.config.data.generated if source.name == name)


def samples_file(run: RunFolder, step: int) -> Path:
    """Return where the answers of a step's prompts are, as the model gave them."""
    return run.step(step) / "generated.parquet"


def scores_file(run: RunFolder, step: int) -> Path:
    """Return where the scores of a step's samples are: ``prompt_key``, ``sample``, ``score``."""
    return run.step(step) / "scores.parquet"


def prompts_identity(context: Context, step: int, source: SourceConfig) -> Payload:
    """Return what the prompts of a round depend on."""
    settings, run = source.generate, context.run
    pool = prompts_input(context, source)
    if settings.prompts_of:
        rows = pq.read_table(run.pairs, columns=["prompt_key", "source"])
        own = rows.filter(pc.equal(rows["source"].cast(pa.string()), settings.prompts_of))
        pool = pool | {"keys": _digest(set(own["prompt_key"].to_pylist()))}
    return {
        "pool": dict(pool),
        "column": settings.prompt_column if settings.prompts else "",
        **_part_of_set(settings),
        "reserved": _digest(reserved_prompts(context)),
        "answered": _digest(_answered(context, step, source)),
        "per_round": settings.per_round,
        "seed": settings.seed,
        "step": step,
    }


def _part_of_set(settings: GenerateConfig) -> Payload:
    """Return which part of a set has the prompts, as far as its digest does not say it."""
    part = {"split": settings.prompts_split, "subset": settings.prompts_subset}
    usual = {"split": GenerateConfig().prompts_split, "subset": ""}
    return {name: value for name, value in part.items() if value != usual[name]}


def draw_prompts(context: Context, step: int, source: SourceConfig) -> pa.Table:
    """Return the prompts of a round, a row of ``pairs.parquet`` for each, by their keys.

    Raises:
        DataError: there is none left; says why. Or the file is not what the run was made from.
    """
    settings = source.generate
    with _pool(context, source) as path:
        table = pq.read_table(path, columns=["prompt_key", "source"])
        keys = table["prompt_key"].to_pylist()
        sources = table["source"].cast(pa.string()).to_pylist()
        rows = {
            key: row
            for row, (key, name) in reversed(list(enumerate(zip(keys, sources, strict=True))))
            if not settings.prompts_of or name == settings.prompts_of
        }
        held, answered = reserved_prompts(context), _answered(context, step, source)
        left = [key for key in rows if key not in held and key not in answered]
        if not left:
            raise DataError(
                f"step {step}: source {source.name} has no prompt left: of {len(rows)}, "
                f"{len(held & rows.keys())} are reserved, by which models are judged, and "
                f"{len(answered & rows.keys())} were answered in earlier rounds. Give more "
                "prompts, set a smaller generate.per_round, or generate.again: true"
            )
        number = step.to_bytes(4, "big")
        left.sort(key=lambda key: (draw_key(settings.seed, bytes.fromhex(key) + number), key))
        drawn = sorted(left[: settings.per_round or len(left)])
        return _rows_of(path, np.array([rows[key] for key in drawn]))


def reserved_prompts(context: Context) -> Set[str]:
    """Return the keys of reserved prompts; those of an extended run's steps are the origin's."""
    if context.carried:
        plan = pq.read_table(
            context.run.path / "carried" / "plan.parquet", columns=["prompt_key", "step"]
        )
        return set(plan.filter(pc.equal(plan["step"], 0))["prompt_key"].to_pylist())
    usable = pq.read_table(context.run.usable, columns=["prompt_key", "reserved"])
    return set(usable.filter(usable["reserved"])["prompt_key"].to_pylist())


def prompts_left(context: Context, source: SourceConfig) -> int:
    """Return how many prompts a source's rounds have in all, before any has been answered."""
    name, held = source.generate.prompts_of, reserved_prompts(context)
    with _pool(context, source) as path:
        table = pq.read_table(path, columns=["prompt_key", "source"])
        if name:
            table = table.filter(pc.equal(table["source"].cast(pa.string()), name))
        return len(set(table["prompt_key"].to_pylist()) - held)


def plan_of(context: Context) -> PlanFile:
    """Return the plan that the run's rounds are in."""
    carried = context.run.path / "carried" / "plan.json"
    return PlanFile.of(read_json(carried), carried) if context.carried else read_plan(context.run)


def _answered(context: Context, step: int, source: SourceConfig) -> Set[str]:
    """Return the keys of the prompts that earlier rounds have answered, where that counts."""
    if source.generate.again:
        return set()
    found: set[str] = set()
    for planned in plan_of(context).steps[: step - 1]:
        if planned.generated:
            path = samples_file(context.run, planned.step)
            found.update(pq.read_table(path, columns=["prompt_key"])["prompt_key"].to_pylist())
    return found


def _digest(keys: Set[str]) -> str:
    return digest_of(sorted(keys))


@contextmanager
def _pool(context: Context, source: SourceConfig) -> Iterator[Path]:
    """Yield a file with the columns of ``pairs.parquet`` that has all prompts of a source."""
    if source.generate.prompts_of:
        yield context.run.pairs
        return
    path = source.generate.prompts
    wanted = context.resolved.inputs[f"prompts.{source.name}"]
    if (found := data_digest(path, source.generate.prompts_revision)) != wanted:
        raise DataError(
            f"the prompts of source {source.name}, {path}, are not those that this run was made "
            f"from: their digest is {found[:16]}, not {wanted[:16]}. Put the file back, or make a "
            "run of its own from it"
        )
    with temporary_folder(context.run.path) as scratch:
        given = source.generate
        prepared = prompts_as_pairs(
            SourceConfig(
                path=path,
                split=given.prompts_split,
                subset=given.prompts_subset,
                revision=given.prompts_revision,
            ),
            column=source.generate.prompt_column,
            name=source.name,
            setting="generate.prompt_column",
            default_format="chat" if context.resolved.has_template else "text",
            out=scratch,
        )
        yield prepared.path


def _rows_of(path: Path, rows: np.ndarray) -> pa.Table:
    """Return these rows of a file of pairs, in this order, reading a row group at a time."""
    order = np.argsort(rows)
    taken, start = [], 0
    for group in iter_row_groups(path):
        inside = rows[order][(rows[order] >= start) & (rows[order] < start + group.num_rows)]
        if len(inside):
            taken.append(group.select(PAIRS_SCHEMA.names).take(pa.array(inside - start)))
        start += group.num_rows
    table = pa.concat_tables(taken).cast(PAIRS_SCHEMA)
    return table.take(pa.array(np.argsort(order)))
