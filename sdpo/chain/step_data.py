"""Make what a step has of its own: pairs that come into being when the chain has come to it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from partitions import ordering_key
from sdpo.chain.context import Context
from sdpo.chain.node import Find, Identity, Made, Node
from sdpo.chain.plan import sampling
from sdpo.chain.tokens import rule_of_tokens, tokenise_spec
from sdpo.data.parquet_columns import Columns
from sdpo.data.planned import PLANNED, StepData
from sdpo.errors import DataError
from sdpo.events import WarningEvent
from sdpo.store.step_data import data_node, files_of
from sdpo.system.files import publish_file
from sdpo.system.json_values import JsonObject
from sdpo.tokens.token_file import TokenFile


def make_step_data(
    context: Context,
    step: int,
    *,
    inputs: tuple[str, ...],
    identity: Callable[[], Identity],
    write: Callable[[Path], JsonObject | None],
    beside: Sequence[Path] = (),
) -> Node:
    """Return the node that makes the pairs which ``step`` has of its own, with rows and tokens.

    ``write`` writes them, with the columns of ``pairs.parquet``, to a path, publishes the files
    ``beside`` them, and may return what the record is to say of them; ``identity`` says what they
    depend on, and ``inputs`` name the nodes that they come from. The parts of the step follow
    this node. Making it raises a DataError where no pair is left, one has a reserved prompt, or one
    is the step's already.
    """
    data = files_of(context.run, step)

    def of_all() -> Identity:
        return {
            "made": dict(identity()),
            "tokens": rule_of_tokens(context),
            "probe": sampling(context),
        }

    def make(_find: Find) -> Made:
        with publish_file(data.pairs) as temporary:
            said = write(temporary) or {}
        data.tokens.parent.mkdir(exist_ok=True)
        name = f"tokenise-D_{step}"
        context.stage(tokenise_spec(context, data.pairs, out=data.tokens, name=name))
        tokens = TokenFile.open(data.tokens)
        for message in tokens.report.warnings(f"pairs that step {step} has of its own"):
            context.listen(WarningEvent(message=message))
        rows = np.flatnonzero(tokens.usable)
        table = pq.read_table(data.pairs, columns=["pair_id", "prompt_key", "source"])
        _check(context, data, table.take(pa.array(rows)), unusable=dict(tokens.report.reasons))
        _publish_rows(data, table, rows, **sampling(context))
        return Made(
            {**said, "pairs": len(rows), "unusable": dict(tokens.report.reasons)},
            [data.pairs, data.usable, data.tokens, *beside],
        )

    return Node(
        name=data_node(step),
        title=f"data of step {step}",
        inputs=("plan", *inputs),
        identity=of_all,
        make=make,
    )


def _publish_rows(
    data: StepData, table: pa.Table, rows: np.ndarray, *, max_pairs: int, seed: int
) -> None:
    """Publish the planned rows of a step's own pairs: those with tokens, in the order of ids.

    ``rows`` are the rows of ``table`` that have tokens. Models are measured on a draw of at most
    ``max_pairs``.
    """
    order = pc.sort_indices(table["pair_id"].take(pa.array(rows))).to_numpy()
    rows = rows[order]
    drawn = np.argsort(ordering_key(Columns(data.pairs).ids("pair_id")[rows], seed))[:max_pairs]
    sampled = np.zeros(len(rows), dtype=bool)
    sampled[drawn] = True
    of_rows = table.take(pa.array(rows))
    columns = {
        **{name: of_rows[name].cast(pa.string()) for name in table.column_names},
        "token_row": pa.array(rows, pa.int64()),
        "step": pa.array(np.full(len(rows), data.step, dtype=np.int32)),
        "sampled": pa.array(sampled),
    }
    with publish_file(data.usable) as temporary:
        pq.write_table(pa.table(columns).select(list(PLANNED)), temporary)


def _check(context: Context, data: StepData, table: pa.Table, *, unusable: dict[str, int]) -> None:
    """Refuse pairs that cannot be a step's own.

    Raises:
        DataError: names the first of them, or why none is left.
    """
    if not len(table):
        why = ", ".join(f"{reason} {count}" for reason, count in unusable.items())
        raise DataError(f"step {data.step} has no pair of its own left ({why or 'none was made'})")
    plan = pq.read_table(context.run.plan, columns=["pair_id", "prompt_key", "step"])
    steps = plan["step"].to_numpy()
    held = plan.filter(pa.array(steps == 0))["prompt_key"]
    planned = plan.filter(pa.array(steps == data.step))["pair_id"]
    for column, others, what in (
        ("prompt_key", held, "has a reserved prompt, by which models are judged"),
        ("pair_id", planned, "is in the run's plan of that step too"),
    ):
        found = table.filter(pc.is_in(table[column], value_set=pc.unique(others)))
        if len(found):
            raise DataError(
                f"a pair that step {data.step} has of its own {what}: "
                f"{found['pair_id'][0].as_py()} ({len(found)} of {len(table)}). Leave it out"
            )
    twice = table["pair_id"].value_counts()
    for entry in twice.to_pylist():
        if entry["counts"] > 1:
            raise DataError(f"step {data.step} has pair {entry['values']} {entry['counts']} times")
