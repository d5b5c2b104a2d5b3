"""Say where the pairs, planned rows and tokens of every step are, and what was measured on them.

They are the run's: ``pairs.parquet``, ``plan.parquet`` and a token file in the cache. What a step
has of its own beside them is in its folder, made by the node ``data-<step>``, and counts as soon as
that node has its record.
"""

import re

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.data.planned import Planned, StepData
from sdpo.identity.canonical import digest_of
from sdpo.store.plan_file import read_plan
from sdpo.store.run_folder import RunFolder

_NODE = re.compile(r"data-([1-9]\d*)")


def data_node(step: int) -> str:
    """Return the name of the node that makes what a step has of its own."""
    return f"data-{step}"


def generate_node(step: int) -> str:
    """Return the name of the node that draws the samples of which a step's pairs are made."""
    return f"generate-{step}"


def judge_node(step: int) -> str:
    """Return the name of the node that scores these samples."""
    return f"judge-{step}"


def nodes_of_data(step: int) -> tuple[str, ...]:
    """Return the names of all nodes that make what a step has of its own."""
    return (generate_node(step), judge_node(step), data_node(step))


def own_probe(model: int, step: int) -> str:
    """Return under which name M_``model`` is measured on what a later step has of its own."""
    return f"M_{model}.D_{step}"


def files_of(run: RunFolder, step: int) -> StepData:
    """Return the files of what a step has of its own, whether they are there or not."""
    folder = run.step(step)
    return StepData(
        step=step,
        pairs=folder / "pairs.parquet",
        usable=folder / "usable.parquet",
        tokens=folder / "tokens" / "pairs.arrow",
    )


def step_data(run: RunFolder, *, last: int | None = None) -> tuple[StepData, ...]:
    """Return what steps have of their own, in ascending order; with ``last``, up to that step.

    Raises:
        IntegrityError: the record of one of them is damaged.
    """
    steps = sorted(int(m[1]) for node in run.nodes() if (m := _NODE.fullmatch(node)))
    return tuple(
        files_of(run, step)
        for step in steps
        if (last is None or step <= last) and run.find(data_node(step)) is not None
    )


def planned(run: RunFolder, *, last: int | None = None) -> Planned:
    """Return the plan of a run with what steps, with ``last`` up to that one, have of their own."""
    return Planned(plan=run.plan, pairs=run.pairs, own=step_data(run, last=last))


def own_digests(run: RunFolder, steps: tuple[StepData, ...]) -> dict[str, str]:
    """Return by partition the digest of what each of these steps has of its own."""
    nodes = {f"D_{data.step}": data_node(data.step) for data in steps}
    return {name: digest_of(dict(run.record(node).files)) for name, node in nodes.items()}


def pairs_of_steps(run: RunFolder) -> dict[int, int]:
    """Return how many pairs every step has: those of the plan, and what it has of its own."""
    own = planned(run).own_pairs()
    return {step.step: step.pairs + own.get(step.step, 0) for step in read_plan(run).steps}


def probes_of(run: RunFolder, model: int, *, last: int) -> list[str]:
    """Return the names of the files, in ``probes/``, of M_``model`` on D_1..D_``last``.

    ``M_<model>`` has what was known when M_model was made; what a later step has of its own is
    measured when it is there, and has a file of its own.
    """
    later = [data.step for data in step_data(run, last=last) if data.step > model]
    return [f"M_{model}", *(own_probe(model, step) for step in later)]


def read_probe(run: RunFolder, model: int, *, last: int) -> pa.Table:
    """Return what M_``model`` gave on D_1..D_``last``, as far as it was measured."""
    paths = [run.probes / f"{name}.parquet" for name in probes_of(run, model, last=last)]
    return pa.concat_tables(pq.read_table(path) for path in paths if path.is_file())
