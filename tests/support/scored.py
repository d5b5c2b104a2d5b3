"""Evaluations that a test makes up: records and scores of a run, without a model or a harness."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from sdpo.store.evaluations import GroupFacts, SuiteFacts, TaskFacts
from sdpo.store.run_folder import RunFolder


def write_scores(
    run: RunFolder,
    model: int,
    task: str,
    values: Sequence[float],
    *,
    metric: str = "acc",
    shots: int = 0,
    truncated: int = 0,
    groups: Sequence[GroupFacts] = (),
    suites: Sequence[SuiteFacts] = (),
    prompts: Mapping[int, str] = {},
    limit: int = 0,
) -> None:
    """Write that M_``model`` got ``values`` on a task's documents; ``limit``: of so many."""
    folder = run.evaluations / f"M_{model}"
    folder.mkdir(parents=True, exist_ok=True)
    key = f"{limit or 1234567:08d}"
    path = folder / f"{task}-{key}.parquet"
    count = len(values)
    table = pa.table(
        {
            "doc_id": list(range(count)),
            "filter": ["none"] * count,
            "doc_hash": [f"{task}-{i}" for i in range(count)],
            "prompt_hash": [prompts.get(i, "p") for i in range(count)],
            "target_hash": ["t"] * count,
            "truncated": [i < truncated for i in range(count)],
            "responses": ["[]"] * count,
            f"metric:{metric}": pa.array(list(map(float, values)), pa.float64()),
        }
    )
    pq.write_table(table, path)
    facts = TaskFacts(
        name=task, version="1", config="c", data="d", functions="f", kind="multiple_choice",
        shots=shots, documents=count, metric=metric, better={metric: True},
    )  # fmt: skip
    outputs = {
        "cached": "0" * 32,
        "model": f"M_{model}",
        "common": key,
        "asked": {
            "names": [task],
            "limit": limit,
            "chat_template": False,
            "batch_size": 1,
            "seed": 1,
        },
        "facts": facts.model_dump(),
        "groups": [group.model_dump() for group in groups],
        "suites": [suite.model_dump() for suite in suites],
        "summary": {
            "task": task,
            "metrics": {f"{metric},none": sum(values) / count},
            "documents": count,
            "requests": count,
            "truncated": truncated,
            "documents_truncated": truncated,
        },
    }
    node = f"eval-M_{model}-{task}-{key}"
    run.write_record(node, {"node": node, "identity": {}, "outputs": outputs}, files=[path])
