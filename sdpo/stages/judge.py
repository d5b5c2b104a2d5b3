"""Have a judge compare what models answered, with one load of it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sdpo.data.schema import Message
from sdpo.evaluation.judging import Answered, Comparison, Judge, Verdict, better, make_judge
from sdpo.events import EventWriter
from sdpo.processes.judging_specs import JudgeSpec, ToJudge
from sdpo.processes.stage_results import JudgeResult
from sdpo.store.kl_cache import KEY_FILE
from sdpo.store.win_rates import VERDICTS
from sdpo.system.files import file_digest, publish_folder, write_json

Rewards = dict[tuple[str, str], float]
"""Scores by prompt key and answer, so that a model's are computed once."""


def run(spec: JudgeSpec, events: EventWriter) -> JudgeResult:
    """Publish ``verdicts.parquet`` and ``key.json`` of everything that is to be compared."""
    torch.set_num_threads(spec.launch.threads)
    events.phase("load", detail=f"the judge, {spec.judge.title}")
    judge = make_judge(
        spec.judge,
        device=spec.launch.device,
        kept=spec.kept,
        label=spec.run.name,
        warn=events.warning,
    )
    rewards: Rewards = {}
    done = 0
    for todo in spec.todo:
        comparisons, samples = _comparisons(todo)
        _score(judge, spec, comparisons, rewards, todo, events)
        if spec.judge.config.is_pairwise:
            verdicts = judge.verdicts(
                comparisons,
                on_done=lambda count, todo=todo, total=len(comparisons): events.progress(  # type: ignore[misc]
                    f"verdicts on {todo.names}", count, total, unit="comparisons"
                ),
            )
        else:
            verdicts = [
                Verdict(won, won)
                for each in comparisons
                for won in [better(rewards[each.key, each.first], rewards[each.key, each.second])]
            ]
        with publish_folder(todo.out) as temporary:
            path = temporary / VERDICTS
            pq.write_table(_table(comparisons, samples, verdicts, rewards), path)
            files = {VERDICTS: file_digest(path)}
            write_json(temporary / KEY_FILE, {"identity": todo.identity, "files": files})
        done += len(comparisons)
    return JudgeResult(comparisons=done)


def _comparisons(todo: ToJudge) -> tuple[list[Comparison], list[int]]:
    """Return the answers to the same prompt and sample side by side, and the samples' numbers."""
    theirs = {_place(row): row["text"] for row in _rows(todo.second)}
    found, samples = list[Comparison](), list[int]()
    for row in _rows(todo.first):
        if _place(row) in theirs:
            prompt = tuple(
                Message(turn["role"], turn["content"], turn.get("rest") or "")
                for turn in row["prompt"]
            )
            found.append(Comparison(row["prompt_key"], prompt, row["text"], theirs[_place(row)]))
            samples.append(row["sample"])
    return found, samples


def _rows(path: Path) -> list[dict[str, Any]]:
    columns = ["prompt_key", "sample", "prompt", "text"]
    rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    return rows


def _place(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["prompt_key"], row["sample"]


def _score(
    judge: Judge,
    spec: JudgeSpec,
    comparisons: Sequence[Comparison],
    rewards: Rewards,
    todo: ToJudge,
    events: EventWriter,
) -> None:
    """Have a judge by scores score the answers that it has not scored yet."""
    if spec.judge.config.is_pairwise:
        return
    new = {
        (each.key, text): Answered(each.key, each.prompt, (text,))
        for each in comparisons
        for text in (each.first, each.second)
        if (each.key, text) not in rewards
    }
    phase = f"scores of {todo.names}"
    found = judge.scores(
        list(new.values()),
        on_done=lambda count: events.progress(phase, count, len(new), unit="answers"),
    )
    rewards |= {place: scores[0] for place, scores in zip(new, found, strict=True)}


def _table(
    comparisons: Sequence[Comparison],
    samples: Sequence[int],
    verdicts: Sequence[Verdict],
    rewards: Rewards,
) -> pa.Table:
    def score(key: str, text: str) -> float | None:
        value = rewards.get((key, text), math.nan)
        return None if math.isnan(value) else value

    double = pa.float64()
    return pa.table(
        {
            "prompt_key": pa.array([each.key for each in comparisons], pa.string()),
            "sample": pa.array(samples, pa.int32()),
            "forward": pa.array([verdict.forward for verdict in verdicts], double),
            "backward": pa.array([verdict.backward for verdict in verdicts], double),
            "first_chars": pa.array([len(each.first) for each in comparisons], pa.int32()),
            "second_chars": pa.array([len(each.second) for each in comparisons], pa.int32()),
            "first_score": pa.array([score(e.key, e.first) for e in comparisons], double),
            "second_score": pa.array([score(e.key, e.second) for e in comparisons], double),
        }
    )
