"""Suites on a finished run, with the real harness: every number is the harness's own.

What is compared with is the harness run by hand, on the published folder of a model, with the same
arguments.
"""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from bench import Bench
from forked_stages import forked_stages

from sdpo.errors import Interrupted, UserError
from sdpo.events import Event, ProgressEvent, WarningEvent
from sdpo.history.evaluate import Evaluated, evaluate_run
from sdpo.hooks import Host
from sdpo.report import summarise
from sdpo.report.evaluations import load_evaluations
from sdpo.store.evaluated import Evaluation, read_evaluations
from sdpo.store.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SUITES = ["local_truthfulqa_mc2", "local_mmlu@2", "local_gsm8k"]
LIMIT = 3
DIES = """
from sdpo.evaluation import policy
add = policy.Responses.add_partial
def dying(self, *arguments):
    add(self, *arguments)
    if self._answered == 5 and "gsm" not in str(arguments):
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)
policy.Responses.add_partial = dying
"""


def evaluate(
    run: RunFolder, evals: Path, *, suites: list[str] = SUITES, first: str = "", **options: Any
) -> tuple[Evaluated, list[Event]]:
    events: list[Event] = []
    settings = [f"evaluation.task_files={evals}", f"evaluation.limit={LIMIT}"]
    with forked_stages(first=first):
        done = evaluate_run(
            run,
            suites=suites,
            overrides=[*settings, *options.pop("overrides", [])],
            host=Host(listen=events.append),
            **options,
        )
    return done, events


@pytest.fixture(scope="module")
def judged(
    finished_bench: Bench,
    finished: Any,
    permitted: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[RunFolder, list[Event]]:
    """A copy of the finished run of which every model was judged."""
    place = finished_bench.copy_to(tmp_path_factory.mktemp("judged"))
    run = RunFolder(place.runs / "tiny")
    _, events = evaluate(run, permitted)
    return run, events


def by_hand(
    model: Path, evals: Path, *, shots: dict[str, int | None], **options: Any
) -> dict[str, Any]:
    """What the harness itself says of a folder."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    here = Path.cwd()
    os.chdir(evals)
    try:
        manager = TaskManager(include_path=str(evals / "tasks"), include_defaults=False)
        lm = HFLM(pretrained=str(model), device="cpu", batch_size=1)
        found: dict[str, Any] = {}
        for name, examples in shots.items():
            found[name] = simple_evaluate(
                model=lm, tasks=[name], num_fewshot=examples, limit=LIMIT,
                task_manager=manager, bootstrap_iters=0, **options,
            )  # fmt: skip
        return found
    finally:
        os.chdir(here)


def of_model(run: RunFolder, model: int) -> dict[str, Evaluation]:
    return {e.facts.name: e for e in read_evaluations(run) if e.model == model}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", [0, 2])
def test_every_number_is_the_harness_s_own_document_by_document(
    judged: tuple[RunFolder, list[Event]], finished_bench: Bench, permitted: Path, model: int
) -> None:
    run, _ = judged
    base = Path(finished_bench.recipe["model"]["name_or_path"])
    folder = run.model(model) if model else base
    found = by_hand(
        folder,
        permitted,
        shots={"local_truthfulqa_mc2": None, "local_mmlu": 2, "local_gsm8k": None},
    )
    mine = of_model(run, model)
    compared = 0
    for results in found.values():
        for task, samples in results["samples"].items():
            rows = pq.read_table(mine[task].table).to_pylist()
            assert len(rows) == len(samples) == LIMIT
            for row, sample in zip(rows, samples, strict=True):
                for name in ("doc_id", "doc_hash", "prompt_hash", "target_hash", "filter"):
                    assert row[name] == sample[name], (task, name)
                assert json.loads(row["responses"]) == json.loads(json.dumps(sample["resps"]))
                for metric in sample["metrics"]:
                    assert row[f"metric:{metric}"] == float(sample[metric]), (task, metric)
                compared += 1
            for key, value in mine[task].summary.metrics.items():
                assert value == float(results["results"][task][key])
    assert compared == LIMIT * 10
    (group,) = (line for line in load_evaluations(run) if line.name == "local_mmlu")
    (score,) = (score for score in group.scores if score.model == model)
    own = found["local_mmlu"]["results"]["local_mmlu"]["acc,none"]
    assert score.value == pytest.approx(own, abs=1e-12)
    assert group.shots == "2"


@pytest.mark.filterwarnings("ignore")
def test_prompts_in_the_chat_template_are_those_of_the_harness(
    permitted: Path, finished_copy: Bench
) -> None:
    run = RunFolder(finished_copy.runs / "tiny")
    suites, settings = ["local_mmlu_formal_logic@2"], ["evaluation.chat_template=true"]
    evaluate(run, permitted, suites=suites, models=["M_2"], overrides=settings)
    name = "local_mmlu_formal_logic"
    found = by_hand(run.model(2), permitted, shots={name: 2}, apply_chat_template=True)[name]
    rows = pq.read_table(of_model(run, 2)[name].table).to_pylist()
    samples = found["samples"][name]
    assert [row["prompt_hash"] for row in rows] == [each["prompt_hash"] for each in samples]
    assert [json.loads(row["responses"]) for row in rows] == [
        json.loads(json.dumps(each["resps"])) for each in samples
    ]


def test_what_was_scored_is_not_scored_again(
    judged: tuple[RunFolder, list[Event]], permitted: Path
) -> None:
    run, _ = judged
    before = {path: path.stat().st_mtime_ns for path in run.evaluations.rglob("*.parquet")}
    again, events = evaluate(run, permitted)
    assert again.executed == ()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not [event for event in events if isinstance(event, ProgressEvent)]


def test_another_run_with_the_same_model_finds_its_scores_in_the_cache(
    judged: tuple[RunFolder, list[Event]], permitted: Path, finished_bench: Bench
) -> None:
    run, _ = judged
    cache = run.path.parents[1] / "cache"
    with forked_stages():
        from sdpo.chain.run_chain import run_chain
        from sdpo.config.load import make_config

        values = finished_bench.values(
            {
                "name": "other",
                "training": {"max_steps": 1},
                "evaluation": {
                    "suites": SUITES, "task_files": str(permitted), "limit": LIMIT,
                },
            }
        )  # fmt: skip
        values["store"] = {"runs_dir": str(run.path.parent), "cache_dir": str(cache)}
        events: list[Event] = []
        done = run_chain(make_config(values), host=Host(listen=events.append))
    phases = {event.phase for event in events if isinstance(event, ProgressEvent)}
    assert any(phase.endswith("of M_1") and "local" in phase for phase in phases)
    assert not any("local" in phase and phase.endswith("of M_0") for phase in phases)
    assert len(summarise(done.run).evaluations) == 1
    scored = {e.facts.name: e for e in read_evaluations(RunFolder(done.run)) if e.model == 0}
    for name, evaluation in of_model(run, 0).items():
        assert pq.read_table(scored[name].table).equals(pq.read_table(evaluation.table))


def test_an_evaluation_that_was_stopped_goes_on_and_gives_the_same(
    judged: tuple[RunFolder, list[Event]], permitted: Path, finished_copy: Bench
) -> None:
    run, _ = judged
    other = RunFolder(finished_copy.runs / "tiny")
    with pytest.raises(Interrupted):
        evaluate(other, permitted, models=["M_1"], first=DIES)
    kept = list((finished_copy.folder / "cache" / "evaluations").glob("*/responses.jsonl"))
    assert [len(path.read_text().splitlines()) for path in kept] == [5]
    with kept[0].open("a", encoding="utf-8") as file:
        file.write('{"key": "cut sho')
    _, events = evaluate(other, permitted, models=["M_1"])
    first = next(e for e in events if isinstance(e, ProgressEvent) and "truthful" in e.phase)
    assert first.done >= 1
    for name, evaluation in of_model(run, 1).items():
        mine = of_model(other, 1)[name]
        assert pq.read_table(mine.table).equals(pq.read_table(evaluation.table)), name
        assert mine.summary == evaluation.summary


def test_prompts_that_are_cut_are_counted_and_said(permitted: Path, finished_copy: Bench) -> None:
    run = RunFolder(finished_copy.runs / "tiny")
    _, events = evaluate(run, permitted, suites=["local_arc_challenge"], models=["M_2"])
    (found,) = of_model(run, 2).values()
    said = [e.message for e in events if isinstance(e, WarningEvent) and "local_arc" in e.message]
    assert found.summary.documents_truncated == LIMIT, "25 examples are longer than its context"
    assert len(said) == 1
    assert f"of {LIMIT} documents, are longer than the" in said[0]


def test_tasks_that_cannot_be_had_are_refused_with_what_helps(
    permitted: Path, finished_copy: Bench
) -> None:
    run = RunFolder(finished_copy.runs / "tiny")
    with pytest.raises(UserError, match=r"local_truthfulqa_mc3.*did you mean local_truthfulqa"):
        evaluate(run, permitted, suites=["local_truthfulqa_mc3"])
    with pytest.raises(UserError, match=r"truthfulqa_mc2 reads .* hub.*HF_HUB_OFFLINE is set"):
        evaluate(run, permitted, suites=["truthfulqa_mc2"])
    with pytest.raises(UserError, match="has no examples by its own configuration"):
        evaluate(run, permitted, suites=["local_gsm8k@5"])
    assert read_evaluations(run) == []
