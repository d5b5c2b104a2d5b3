"""Score a model on a task: the harness's own evaluation, with what every document got."""

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sdpo.evaluation.policy import Policy
from sdpo.store.evaluations import METRIC, Summary, finite

_HARNESS_SEEDS = (0, 1234, 1234)
"""The harness starts random, numpy and torch with these."""


def requests_of(task: Any) -> int:
    """Return how many answers a task that has built its requests will ask for."""
    return sum(request.repeats for request in task.instances)


def score_task(
    lm: Policy, task: Any, *, limit: int, chat_template: bool
) -> tuple[pa.Table, Summary]:
    """Return a row for every document and filter, and the task's own aggregates.

    The table has ``doc_id``, ``filter``, the hashes of document, prompt and target (by which the
    scores of two models are joined), ``truncated``, the model's answers as JSON and a column of
    float64 for each metric that has one number for a document.
    """
    from lm_eval import evaluate

    first, second, third = _HARNESS_SEEDS
    random.seed(first)
    np.random.seed(second)
    torch.manual_seed(third)
    name = task.task_name
    found = evaluate(
        lm=lm,
        task_dict={"tasks": {name: task}},
        limit=limit or None,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=True,
    )
    cut = {
        request.doc_id
        for request in task.instances
        if lm.responses.is_cut(request.request_type, request.args)
    }
    requests = [
        lm.responses.is_cut(request.request_type, request.args) for request in task.instances
    ]
    samples = found["samples"][name]
    summary = Summary(
        task=name,
        metrics=_metrics(found["results"][name]),
        documents=len({sample["doc_id"] for sample in samples}),
        requests=len(requests),
        truncated=sum(requests),
        documents_truncated=len(cut),
    )
    return _table(samples, cut), summary


def _metrics(results: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        key: finite(float(value))
        for key, value in results.items()
        if "," in key and "_stderr," not in key and isinstance(value, int | float | np.number)
    }


def _table(samples: list[dict[str, Any]], cut: set[int]) -> pa.Table:
    columns: dict[str, list[Any]] = {
        name: [sample[name] for sample in samples]
        for name in ("doc_id", "filter", "doc_hash", "prompt_hash", "target_hash")
    }
    columns["truncated"] = [sample["doc_id"] in cut for sample in samples]
    columns["responses"] = [json.dumps(sample["resps"], default=str) for sample in samples]
    metrics = dict.fromkeys(metric for sample in samples for metric in sample["metrics"])
    table = pa.table(columns)
    for metric in metrics:
        values = [_number(sample.get(metric)) for sample in samples]
        if any(value is not None for value in values):
            table = table.append_column(f"{METRIC}{metric}", pa.array(values, pa.float64()))
    return table


def _number(value: Any) -> float | None:
    """Return a document's number; None where a metric keeps something else of it."""
    return float(value) if isinstance(value, bool | int | float | np.number | np.bool_) else None
